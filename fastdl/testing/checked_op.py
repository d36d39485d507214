"""What a family offers `check()`: fastdl/testing/<family>.py lists its ops, each a `CheckedOp`, as OPS."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..dispatch import Candidate
from .error_rule import SECOND_DRAW, SEEDS, ErrorReport, judge


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


def reports_of(ours: Sequence[Run], eager: Sequence[Run], names: Sequence[str], dtype: torch.dtype) -> dict:
    """The error rule's report of each quantity that the runs have, one run of either kind for each seed."""
    result = {}
    for i, name in enumerate(names):
        if ours[0].values[i] is not None:
            pooled = [
                (o.values[i], o.truths[i], e.values[i], e.truths[i]) for o, e in zip(ours, eager, strict=True)
            ]
            result[name] = judge(pooled, dtype)
    return result


def reports_by_draws(
    ours: Callable[[int], Run],
    eager: Callable[[Sequence[int]], Sequence[Run]],
    names: Sequence[str],
    dtype: torch.dtype,
) -> dict[str, ErrorReport]:
    """The error rule's report of each quantity: of the first seeds or, where their largest error alone is beyond the
    rule, of twenty times as many others.

    The largest of few errors is partly chance, ours and eager's: an error of the method shows in any draw.
    """
    found = reports_of([ours(seed) for seed in SEEDS], eager(SEEDS), names, dtype)
    doubtful = [name for name, report in found.items() if report.within_rms and not report.within_rule]
    if doubtful:
        again = reports_of([ours(seed) for seed in SECOND_DRAW], eager(SECOND_DRAW), names, dtype)
        found |= {name: again[name] for name in doubtful}
    return found


def once_for_all_plans(run_eager: Callable[..., Run]) -> Callable[..., list[Run]]:
    """Eager's runs of a sample over the seeds, kept: every plan of the sample is compared with the same ones."""

    @functools.lru_cache(maxsize=64)
    def runs(sample: Any, dtype: torch.dtype, device: str, seeds: Sequence[int] = SEEDS) -> list[Run]:
        return [run_eager(sample, dtype, seed, device=device) for seed in seeds]

    return runs
