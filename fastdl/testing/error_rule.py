"""The error rule: against fp64, at most twice the error of eager PyTorch in the same dtype, pooled over seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_FACTOR = 2.0
RMS_FACTOR = 1.5
WINOGRAD_RELATIVE_L2 = 1e-5
FLASH_MAX_FACTOR = 4.0
TF32_RELATIVE_L2 = 2.0**-9
EXACT_RELATIVE_L2 = 1e-15
SEEDS = range(5)
SECOND_DRAW = range(5, 105)  # where the largest error of the first alone is beyond what is allowed


@dataclass(frozen=True)
class ErrorReport:
    """Errors against fp64, pooled over seeds. `ulp` keeps the limit above zero where eager is exact."""

    ours_max: float
    eager_max: float
    ours_rms: float
    eager_rms: float
    ulp: float
    relative_l2: float

    @property
    def within_rule(self) -> bool:
        return self.ours_max <= MAX_FACTOR * self.eager_max + self.ulp and self.within_rms

    @property
    def within_rms(self) -> bool:
        """The rule without the largest error: the truth being one, this compares relative L2 errors."""
        return self.ours_rms <= RMS_FACTOR * self.eager_rms + self.ulp

    @property
    def within_winograd(self) -> bool:
        """Winograd's documented exception, for fp32: relative L2 error instead of the rule."""
        return self.relative_l2 <= WINOGRAD_RELATIVE_L2

    @property
    def within_flash(self) -> bool:
        """The documented exception of fp32 gradients by recomputed scores: a larger factor for the largest error.

        They subtract sum(grad_output * output) from products it should cancel with, and output was rounded.
        """
        most = FLASH_MAX_FACTOR * self.eager_max + self.ulp
        return self.ours_max <= most and self.within_rms

    @property
    def within_tf32(self) -> bool:
        """The documented exception of fp32 products of TF32 numbers (rounded to 2^-11 each): relative L2 error.

        Where it may, eager takes such products for some sizes and not for others.
        """
        return self.relative_l2 <= TF32_RELATIVE_L2

    @property
    def within_exact(self) -> bool:
        """Of fp64, which eager computes exactly as the truth is."""
        return self.relative_l2 <= EXACT_RELATIVE_L2

    def __str__(self) -> str:
        return (
            f"max {self.ours_max:.2e} (eager {self.eager_max:.2e}), rms {self.ours_rms:.2e} "
            f"(eager {self.eager_rms:.2e}), ulp {self.ulp:.2e}, relative L2 {self.relative_l2:.2e}"
        )


class PooledErrors:
    """Errors over any number of runs of one quantity, of which no run is kept."""

    def __init__(self) -> None:
        self.count = 0
        self.ours, self.eager, self.truth = _Sums(), _Sums(), _Sums()

    def add(self, ours: Tensor, ours_truth: Tensor, eager: Tensor, eager_truth: Tensor) -> None:
        """One run. The two truths differ only where a choice of the run itself enters, such as which of two nearly
        equal values was the maximum. A NaN in ours that the truth does not have gives infinite errors."""
        self.count += ours.numel()
        self.ours.add((ours.double() - ours_truth).nan_to_num_(nan=float("inf")))
        self.eager.add(eager.double() - eager_truth)
        self.truth.add(ours_truth)

    def report(self, dtype: torch.dtype) -> ErrorReport:
        if self.count == 0:
            return ErrorReport(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
        norm = math.sqrt(self.truth.squares)
        return ErrorReport(
            self.ours.largest,
            self.eager.largest,
            math.sqrt(self.ours.squares / self.count),
            math.sqrt(self.eager.squares / self.count),
            torch.finfo(dtype).eps * self.truth.largest / 2,
            math.sqrt(self.ours.squares) / (norm or 1.0),
        )


class _Sums:
    def __init__(self) -> None:
        self.largest, self.squares = 0.0, 0.0

    def add(self, values: Tensor) -> None:
        if values.numel():
            self.largest = max(self.largest, values.abs().max().item())
            self.squares += values.square().sum(dtype=torch.float64).item()


def judge(runs: Iterable[tuple[Tensor, Tensor, Tensor, Tensor]], dtype: torch.dtype) -> ErrorReport:
    """Pool (ours, our fp64 truth, eager's, eager's fp64 truth) over seeds."""
    errors = PooledErrors()
    for run in runs:
        errors.add(*run)
    return errors.report(dtype)


def is_ok(report: ErrorReport, algorithm: str, dtype: torch.dtype) -> bool:
    """The rule, or the documented exceptions in fp32: of Winograd, TF32, and the gradients of flash attention."""
    if dtype is torch.float64:
        return report.within_exact
    if algorithm == "winograd" and dtype is torch.float32:
        return report.within_winograd
    if algorithm.endswith("tf32") and dtype is torch.float32:
        return report.within_tf32
    if algorithm == "flash backward" and dtype is torch.float32:
        return report.within_flash
    return report.within_rule
