"""Samples of linear, and one sample run by a plan, by eager PyTorch and in fp64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..dispatch import Candidate, Choice
from ..ops.linear.activations import activate
from ..ops.linear.backends import Plan, make_plan
from ..ops.linear.op import carried_out
from ..ops.linear.reference import kept
from ..ops.linear.refusals import CANDIDATES
from .checked_op import CheckedOp, Run, once_for_all_plans, reports_by_draws
from .error_rule import ErrorReport

NAMES = ("output", "grad_input", "grad_weight", "grad_bias")


@dataclass(frozen=True, eq=False)
class Sample:
    """x [*rows, K] to [*rows, N]."""

    rows: tuple[int, ...]
    K: int
    N: int
    activation: str | None = None
    dropout_p: float = 0.0
    bias: bool = True

    def __str__(self) -> str:
        words = ["x".join(map(str, (*self.rows, self.K))), f"to{self.N}", self.activation or "none"]
        words += [f"dropout{self.dropout_p:g}"] if self.dropout_p else []
        return "-".join(words + ([] if self.bias else ["nobias"]))

    @property
    def arguments(self) -> dict[str, object]:
        return dict(activation=self.activation, dropout_p=self.dropout_p)

    def inputs(
        self, dtype: torch.dtype, seed: int = 0, integers: bool = False
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """x, weight, bias: drawn in fp32, rounded to the dtype. With `integers`, so small that every float type
        holds their sums of products exactly."""
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int, scale: float = 1.0) -> Tensor:
            if integers:
                most = 2 if self.K < 300 else 1
                return torch.randint(-most, most + 1, shape, generator=generator).to(dtype)
            return (torch.randn(shape, generator=generator) * scale).to(dtype)

        x, weight = draw(*self.rows, self.K), draw(self.N, self.K, scale=max(self.K, 1) ** -0.5)
        return x, weight, draw(self.N) if self.bias else None


# fmt: off
SAMPLES = (
    Sample((7,), 33, 19),
    Sample((64,), 128, 96, "relu"),  # whole tiles
    Sample((5,), 2100, 37, "relu", bias=False),  # several blocks of K, tails everywhere
    Sample((1,), 300, 130, "gelu"),  # one row
    Sample((2, 3, 11), 40, 24, "gelu_tanh"),
    Sample((101,), 65, 70, "silu"),  # two tiles of rows
    Sample((13, 13), 16, 5, "tanh"),  # rows of one vector
    Sample((3,), 1, 1, "sigmoid"),
    Sample((33,), 50, 47, "relu", dropout_p=0.3),
    Sample((9,), 31, 66, "gelu", dropout_p=0.5, bias=False),
    Sample((4, 5), 24, 18, None, dropout_p=0.1),
    Sample((17,), 20, 30, "tanh", dropout_p=0.25),
)
# fmt: on


def run_plan(
    sample: Sample, plan: Plan, dtype: torch.dtype, seed: int, *, device: str = "cpu", integers: bool = False
) -> Run:
    """The sample by one backend and algorithm (`make_plan`)."""

    def compute(x: Tensor, weight: Tensor, bias: Tensor | None, philox_seed: Tensor) -> Tensor:
        return carried_out(plan, x, weight, bias, philox_seed if sample.dropout_p else None, recorded=True)

    return _run(sample, dtype, seed, compute, device, integers)


def run_eager(
    sample: Sample, dtype: torch.dtype, seed: int, *, device: str = "cpu", integers: bool = False
) -> Run:
    """The sample by eager PyTorch in the dtype, under the same dropout mask."""

    def compute(x: Tensor, weight: Tensor, bias: Tensor | None, philox_seed: Tensor) -> Tensor:
        return composed(x, weight, bias, sample, philox_seed)

    return _run(sample, dtype, seed, compute, device, integers)


def composed(x: Tensor, weight: Tensor, bias: Tensor | None, sample: Sample, philox_seed: Tensor) -> Tensor:
    """The sample in plain torch."""
    y = activate(F.linear(x, weight, bias), sample.activation)
    if not sample.dropout_p:
        return y
    return y * kept(y.shape, philox_seed, sample.dropout_p) / (1 - sample.dropout_p)


def _run(
    sample: Sample, dtype: torch.dtype, seed: int, compute: Callable, device: str, integers: bool
) -> Run:
    drawn = sample.inputs(dtype, seed, integers)
    philox_seed = torch.tensor([seed - 2**40], device=device)
    generator = torch.Generator().manual_seed(seed + 1000)
    shape = (*sample.rows, sample.N)
    grad_output = (
        torch.randint(-2, 3, shape, generator=generator)
        if integers
        else torch.randn(shape, generator=generator)
    ).to(dtype)
    values, truths = (
        _values(
            [None if t is None else t.to(device, kind) for t in drawn], grad_output.to(device, kind), call
        )
        for kind, call in (
            (dtype, lambda *t: compute(*t, philox_seed)),
            (torch.float64, lambda *t: composed(*t, sample, philox_seed)),
        )
    )
    return Run(values, truths)


def _values(inputs: list[Tensor | None], grad_output: Tensor, compute: Callable) -> tuple[Tensor | None, ...]:
    inputs = [None if t is None else t.detach().requires_grad_() for t in inputs]
    output = compute(*inputs)
    gradients = iter(torch.autograd.grad(output, [t for t in inputs if t is not None], grad_output))
    return output.detach().cpu(), *(None if t is None else next(gradients).cpu() for t in inputs)


_eager = once_for_all_plans(run_eager)


def reports(sample: Sample, plan: Plan, dtype: torch.dtype, device: str = "cpu") -> dict[str, ErrorReport]:
    """The error rule's report for the output and each gradient of one sample under one plan."""
    return reports_by_draws(
        lambda seed: run_plan(sample, plan, dtype, seed, device=device),
        lambda seeds: _eager(sample, dtype, device, seeds),
        NAMES,
        dtype,
        lambda quantity: plan.algorithm,
    )


def _plan(sample: Sample, candidate: Candidate, dtype: torch.dtype, device: str) -> Plan | None:
    x, weight, bias = (None if t is None else t.to(device) for t in sample.inputs(dtype))
    if candidate.refusal(x, weight, bias, sample.activation, sample.dropout_p) is not None:
        return None
    return make_plan(Choice(candidate.backend, candidate.algorithm), sample.activation, sample.dropout_p)


OPS = (CheckedOp("linear", SAMPLES, CANDIDATES, _plan, reports, lambda plan, quantity: plan.algorithm),)
