"""`fastdl check`: the error rule for every op, backend, algorithm and dtype this machine can run."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from .._schemas import family_schemas
from ..dispatch import Candidate
from .checked_op import CheckedOp
from .error_rule import ErrorReport, is_ok

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class CheckResult:
    """The worst sample of one quantity."""

    op: str
    backend: str
    algorithm: str
    dtype: str
    quantity: str
    sample: str
    report: ErrorReport
    ok: bool


def checked_ops() -> Iterator[CheckedOp]:
    """The ops of every family: the files here that are named after one."""
    for family in family_schemas():
        if (Path(__file__).parent / f"{family}.py").exists():
            yield from importlib.import_module(f".{family}", __package__).OPS


def check(device: str = "cpu") -> Iterator[CheckResult]:
    """One result for each (algorithm, dtype, quantity) that serves `device`: its worst sample by the error rule."""
    for op in checked_ops():
        for candidate in op.candidates:
            for dtype in DTYPES:
                yield from check_candidate(op, candidate, dtype, device)


def check_candidate(
    op: CheckedOp, candidate: Candidate, dtype: torch.dtype, device: str
) -> Iterator[CheckResult]:
    """One result for each quantity of the samples that the candidate serves: its worst sample."""
    worst: dict[str, CheckResult] = {}
    for sample in op.samples:
        plan = op.plan(sample, candidate, dtype, device)
        if plan is None:
            continue
        for name, report in op.reports(sample, plan, dtype, device).items():
            algorithm = op.algorithm(plan, name)
            ok = is_ok(report, algorithm, dtype)
            result = CheckResult(
                op.op, candidate.backend, algorithm, str(dtype)[6:], name, str(sample), report, ok
            )
            if name not in worst or _badness(result) > _badness(worst[name]):
                worst[name] = result
    yield from worst.values()


def _badness(result: CheckResult) -> tuple[bool, float]:
    return (not result.ok, result.report.ours_max / (result.report.eager_max + result.report.ulp or 1.0))
