"""`fastdl check`: the error rule for every op, backend, algorithm and dtype this machine can run."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ..dispatch import Candidate, Choice
from ..ops.conv_relu_maxpool import backends
from ..ops.conv_relu_maxpool.refusals import CANDIDATES
from . import conv_relu_maxpool as family
from .error_rule import SEEDS, ErrorReport, judge

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


def check(device: str = "cpu") -> Iterator[CheckResult]:
    """One result for each (algorithm, dtype, quantity) that serves `device`: its worst sample by the error rule."""
    for candidate in CANDIDATES:
        for dtype in DTYPES:
            yield from _check_conv_relu_maxpool(candidate, dtype, device)


def reports(
    sample: family.Sample, plan: backends.Plan, dtype: torch.dtype, device: str = "cpu"
) -> dict[str, ErrorReport]:
    """The error rule's report for the output and each gradient of one sample under one plan.

    With a pool also "record": the fp64 value at the recorded position against the window's maximum. A position
    is at most twice as wrong as the two values it was chosen by, so it is judged against the output's errors.
    """
    ours = [family.run_plan(sample, plan, dtype, seed, device=device) for seed in SEEDS]
    eager = _eager(sample, dtype, device)
    result = {}
    for i, name in enumerate(family.NAMES):
        if ours[0].values[i] is not None:
            pooled = [
                (o.values[i], o.truths[i], e.values[i], e.truths[i]) for o, e in zip(ours, eager, strict=True)
            ]
            result[name] = judge(pooled, dtype)
    if ours[0].chosen is not None:
        result["record"] = judge(
            [
                (o.chosen, o.truths[0], 2 * (e.values[0].double() - e.truths[0]), torch.zeros(()))
                for o, e in zip(ours, eager, strict=True)
            ],
            dtype,
        )
    return result


@functools.lru_cache(maxsize=64)
def _eager(sample: family.Sample, dtype: torch.dtype, device: str) -> list[family.Run]:
    return [family.run_eager(sample, dtype, seed, device=device) for seed in SEEDS]


def is_ok(report: ErrorReport, algorithm: str, dtype: torch.dtype) -> bool:
    """The rule, or for Winograd in fp32 its documented exception."""
    if algorithm == "winograd" and dtype is torch.float32:
        return report.within_winograd
    return report.within_rule


def _check_conv_relu_maxpool(candidate: Candidate, dtype: torch.dtype, device: str) -> Iterator[CheckResult]:
    worst: dict[str, CheckResult] = {}
    for sample in family.SAMPLES:
        x, weight, bias = (None if t is None else t.to(device) for t in sample.inputs(dtype))
        g = sample.geometry(x, weight, bias)
        if candidate.refusal(x, weight, bias, g) is not None:
            continue
        plan = backends.make_plan(Choice(candidate.backend, candidate.algorithm), g)
        for name, report in reports(sample, plan, dtype, device).items():
            algorithm = plan.algorithm if name in ("output", "record") else plan.backward_algorithm
            ok = is_ok(report, algorithm, dtype)
            result = CheckResult(
                "conv_relu_maxpool",
                candidate.backend,
                algorithm,
                str(dtype)[6:],
                name,
                str(sample),
                report,
                ok,
            )
            if name not in worst or _badness(result) > _badness(worst[name]):
                worst[name] = result
    yield from worst.values()


def _badness(result: CheckResult) -> tuple[bool, float]:
    return (not result.ok, result.report.ours_max / (result.report.eager_max + result.report.ulp or 1.0))
