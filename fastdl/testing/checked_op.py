"""What a family offers `check()`: fastdl/testing/<family>.py lists its ops, each a `CheckedOp`, as OPS."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..dispatch import Candidate
from .error_rule import SECOND_DRAW, SEEDS, ErrorReport, PooledErrors, is_ok


@dataclass(frozen=True)
class Run:
    """What one computation of a sample gives: outputs and gradients, and its own fp64 truth for each."""

    values: tuple[Tensor | None, ...]
    truths: tuple[Tensor | None, ...]


@dataclass(frozen=True)
class CheckedOp:
    """One public op. A sample's str() names it; a plan is whatever the family runs a sample by."""

    op: str
    samples: Sequence[Any]
    candidates: Sequence[Candidate]
    # (sample, candidate, dtype, device) -> a plan, or None where the candidate refuses the sample
    plan: Callable[[Any, Candidate, torch.dtype, str], Any]
    # (sample, plan, dtype, device) -> the error rule's report of each quantity
    reports: Callable[[Any, Any, torch.dtype, str], dict[str, ErrorReport]]
    # (plan, quantity) -> the algorithm that computes it
    algorithm: Callable[[Any, str], str]


def reports_of(
    ours: Iterable[Run], eager: Iterable[Run], names: Sequence[str], dtype: torch.dtype
) -> dict[str, ErrorReport]:
    """The error rule's report of each quantity that the runs have, one run of either kind for each seed."""
    errors: dict[str, PooledErrors] = {}
    for o, e in zip(ours, eager, strict=True):
        for name, *values in zip(names, o.values, o.truths, e.values, e.truths, strict=True):
            if values[0] is not None:
                errors.setdefault(name, PooledErrors()).add(*values)
    return {name: pooled.report(dtype) for name, pooled in errors.items()}


def reports_by_draws(
    ours: Callable[[int], Run],
    eager: Callable[[Sequence[int]], Iterable[Run]],
    names: Sequence[str],
    dtype: torch.dtype,
    algorithm: Callable[[str], str],
) -> dict[str, ErrorReport]:
    """The error rule's report of each quantity, computed by `algorithm(quantity)`: of the first seeds or, where their
    largest error alone is beyond what is allowed, of twenty times as many others.

    The largest of few errors is partly chance, ours and eager's: an error of the method shows in any draw.
    """
    found = reports_of(map(ours, SEEDS), eager(SEEDS), names, dtype)
    doubtful = {
        name
        for name, report in found.items()
        if report.within_rms and not is_ok(report, algorithm(name), dtype)
    }
    if doubtful and dtype is not torch.float64:  # which is judged by its relative L2 error
        again = reports_of(map(ours, SECOND_DRAW), eager(SECOND_DRAW), names, dtype)
        found |= {name: again[name] for name in doubtful}
    return found


def once_for_all_plans(run_eager: Callable[..., Run]) -> Callable[..., Iterable[Run]]:
    """Eager's runs of a sample over the first seeds, kept: every plan of the sample is compared with the same ones.

    Those of the second draw are not: a hundred runs of a large sample are gigabytes.
    """

    @functools.lru_cache(maxsize=64)
    def kept(sample: Any, dtype: torch.dtype, device: str) -> list[Run]:
        return [run_eager(sample, dtype, seed, device=device) for seed in SEEDS]

    def runs(sample: Any, dtype: torch.dtype, device: str, seeds: Sequence[int] = SEEDS) -> Iterable[Run]:
        if seeds == SEEDS:
            return kept(sample, dtype, device)
        return (run_eager(sample, dtype, seed, device=device) for seed in seeds)

    return runs
