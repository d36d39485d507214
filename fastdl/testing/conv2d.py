"""Samples of conv2d, and one sample run by a plan, by eager PyTorch and in fp64."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from ..dispatch import Candidate, Choice, precision
from ..ops.conv2d.activations import activate
from ..ops.conv2d.backends import Plan, make_plan
from ..ops.conv2d.epilogue import Epilogue
from ..ops.conv2d.op import compute as compute_plan
from ..ops.conv2d.reference import reference
from ..ops.conv2d.refusals import CANDIDATES
from ..ops.conv_relu_maxpool.geometry import Geometry
from . import conv_relu_maxpool
from .checked_op import CheckedOp, Run, once_for_all_plans, reports_by_draws
from .error_rule import ErrorReport

# "output": without gradients, where the epilogue is the kernel's; "recorded": with them, where it is torch's
NAMES = ("output", "recorded", "grad_input", "grad_weight", "grad_bias", "grad_scale", "grad_residual")


@dataclass(frozen=True, eq=False)
class Sample(conv_relu_maxpool.Sample):
    """One shape, and what follows the convolution."""

    scale: bool = False
    residual: bool = False
    activation: str | None = None

    def __str__(self) -> str:
        present = (name for name in ("scale", "residual") if getattr(self, name))
        return "-".join((super().__str__(), *present, *([self.activation] if self.activation else [])))

    def epilogue(self, dtype: torch.dtype, seed: int = 0, integers: bool = False) -> Epilogue:
        """Drawn as the inputs are; small integers are -1 and 1 as scales, -2 to 2 as residual."""
        generator = torch.Generator().manual_seed(seed + 500)
        scale = residual = None
        if self.scale:
            scale = torch.randn(self.C_out, generator=generator)
            scale = (torch.where(scale < 0, -1.0, 1.0) if integers else scale + 0.5).to(dtype)
        if self.residual:
            x = torch.empty(self.N, self.C, self.H, self.W, device="meta")
            weight = torch.empty(self.C_out, self.C // self.kwargs.get("groups", 1), *self.K, device="meta")
            shape = (self.N, self.C_out, *self.geometry(x, weight, None).conv_size(x, weight))
            drawn = torch.randn(shape, generator=generator)
            residual = (drawn.round().clamp(-2, 2) if integers else drawn).to(dtype)
            if self.channels_last:
                residual = residual.to(memory_format=torch.channels_last)
        return Epilogue(scale, residual, self.activation)


SAME = dict(padding=1)
ALL = dict(scale=True, residual=True, activation="relu")

SAMPLES = (
    Sample(2, 16, 16, 16, 16, kwargs=SAME),  # the convolution alone, without tails
    Sample(2, 16, 16, 16, 16, kwargs=SAME, **ALL),  # the end of a residual block
    Sample(1, 19, 15, 17, 23, kwargs=SAME, channels_last=True, **ALL),  # tails everywhere
    Sample(3, 32, 9, 10, 40, scale=True, activation="relu"),  # no padding
    Sample(2, 24, 10, 8, 24, kwargs=dict(padding=2), bias=False, residual=True),
    Sample(1, 40, 13, 18, 36, kwargs=SAME, scale=True, channels_last=True),
    Sample(2, 9, 21, 30, 33, kwargs=SAME, residual=True, activation="relu"),
    Sample(5, 1, 5, 5, 1, kwargs=SAME, **ALL),  # one channel: both memory formats are the same
    Sample(2, 12, 11, 9, 20, K=(1, 1), **ALL),  # pointwise
    Sample(2, 6, 13, 12, 8, kwargs=dict(stride=2, padding=1), scale=True, residual=True),
    Sample(2, 12, 15, 17, 12, kwargs=dict(groups=12, padding=1), **ALL),  # depthwise
    Sample(
        1, 6, 23, 9, 12, K=(5, 5), kwargs=dict(groups=6, stride=2, padding=2), scale=True, activation="relu"
    ),
    Sample(1, 3, 80, 70, 3, K=(7, 7), kwargs=dict(groups=3, padding=3), residual=True),
    Sample(1, 8, 11, 12, 12, kwargs=dict(groups=4, padding=1, dilation=2), channels_last=True, **ALL),
    Sample(1, 19, 15, 17, 23, kwargs=SAME, channels_last=True, scale=True, activation="silu"),
    Sample(2, 24, 10, 8, 24, kwargs=SAME, scale=True, residual=True, activation="relu6"),
    Sample(2, 12, 11, 9, 20, K=(1, 1), activation="gelu"),
    Sample(1, 13, 29, 31, 13, kwargs=dict(groups=13, padding=1), scale=True, activation="silu"),
    Sample(2, 8, 11, 12, 12, kwargs=dict(groups=4, padding=1), scale=True, activation="hardswish"),
    Sample(5, 33, 1, 1, 21, K=(1, 1), **ALL),  # images of one position, as squeezed ones
    Sample(9, 40, 1, 1, 51, K=(1, 1), activation="silu"),
)


def run_plan(
    sample: Sample, plan: Plan, dtype: torch.dtype, seed: int, *, device: str = "cpu", integers: bool = False
) -> Run:
    """The sample by one backend and algorithm (`make_plan`)."""

    def compute(x: Tensor, weight: Tensor, bias: Tensor | None, epilogue: Epilogue, g: Geometry) -> Tensor:
        # a ReLU alone is recorded by conv_relu_maxpool, which chooses for itself
        with precision("strict") if plan.algorithm == "composed" else nullcontext():
            return compute_plan(plan, x, weight, bias, epilogue)

    return _run(sample, dtype, seed, compute, device, integers)


def run_eager(
    sample: Sample, dtype: torch.dtype, seed: int, *, device: str = "cpu", integers: bool = False
) -> Run:
    """The sample by eager PyTorch in the dtype."""

    def compute(x: Tensor, weight: Tensor, bias: Tensor | None, epilogue: Epilogue, g: Geometry) -> Tensor:
        return reference(x, weight, bias, *epilogue, g)

    return _run(sample, dtype, seed, compute, device, integers)


def _run(
    sample: Sample, dtype: torch.dtype, seed: int, compute: Callable, device: str, integers: bool
) -> Run:
    tensors = (*sample.inputs(dtype, seed, integers), *sample.epilogue(dtype, seed, integers)[:2])
    x, weight, bias, scale, residual = leaves = [
        None if t is None else t.to(device, copy=True).requires_grad_() for t in tensors
    ]
    g, epilogue = sample.geometry(x, weight, bias), Epilogue(scale, residual, sample.activation)
    with torch.no_grad():
        output = compute(x, weight, bias, epilogue, g)
    recorded = compute(x, weight, bias, epilogue, g)
    generator = torch.Generator().manual_seed(seed + 1000)
    grad_output = torch.randn(output.shape, generator=generator)
    grad_output = (grad_output.round().clamp(-2, 2) if integers else grad_output).to(dtype)
    wanted = [t for t in leaves if t is not None]
    gradients = iter(torch.autograd.grad(recorded, wanted, grad_output.to(device)))
    values = [output, recorded.detach(), *(None if t is None else next(gradients) for t in leaves)]
    values = tuple(None if t is None else t.cpu() for t in values)
    return Run(values, _truth(tensors, grad_output, values[1], sample.activation, g))


def _truth(
    tensors: tuple[Tensor | None, ...],
    grad_output: Tensor,
    recorded: Tensor,
    activation: str | None,
    g: Geometry,
) -> tuple[Tensor | None, ...]:
    """fp64 outputs and gradients; these through the run's own ReLU: near its kinks, rounding decides it."""
    x, weight, bias, scale, residual = leaves = [
        None if t is None else t.double().requires_grad_() for t in tensors
    ]
    kinks = {"relu": torch.inf, "relu6": 6.0}
    grad, smooth = grad_output.double(), None if activation in kinks else activation
    if activation in kinks:
        grad = grad.masked_fill((recorded <= 0) | (recorded >= kinks[activation]), 0)
    output = reference(x, weight, bias, scale, residual, smooth, g)
    gradients = iter(torch.autograd.grad(output, [t for t in leaves if t is not None], grad))
    truth = (output if activation == smooth else activate(output, activation)).detach()
    return (truth, truth, *(None if t is None else next(gradients) for t in leaves))


_eager = once_for_all_plans(run_eager)


def reports(sample: Sample, plan: Plan, dtype: torch.dtype, device: str = "cpu") -> dict[str, ErrorReport]:
    """The error rule's report for the outputs and each gradient of one sample under one plan."""
    return reports_by_draws(
        lambda seed: run_plan(sample, plan, dtype, seed, device=device),
        lambda seeds: _eager(sample, dtype, device, seeds),
        NAMES,
        dtype,
        lambda quantity: plan.algorithm,
    )


def _plan(sample: Sample, candidate: Candidate, dtype: torch.dtype, device: str) -> Plan | None:
    x, weight, bias = (None if t is None else t.to(device) for t in sample.inputs(dtype))
    g = sample.geometry(x, weight, bias)
    if candidate.refusal(x, weight, bias, g) is not None:
        return None
    return make_plan(Choice(candidate.backend, candidate.algorithm), g)


OPS = (CheckedOp("conv2d", SAMPLES, CANDIDATES, _plan, reports, lambda plan, quantity: plan.algorithm),)
