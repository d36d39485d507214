"""Samples of conv_relu_maxpool, and one sample run by a plan, by eager PyTorch and in fp64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ..dispatch import Candidate, Choice
from ..ops.conv_relu_maxpool.backends import Plan, make_plan
from ..ops.conv_relu_maxpool.geometry import Geometry, normalise
from ..ops.conv_relu_maxpool.op import compute as compute_plan
from ..ops.conv_relu_maxpool.reference import indices_from_record, offsets_from_indices, reference_expand
from ..ops.conv_relu_maxpool.refusals import CANDIDATES
from .checked_op import CheckedOp, Run, once_for_all_plans, reports_of
from .error_rule import SEEDS, ErrorReport, judge

NAMES = ("output", "grad_input", "grad_weight", "grad_bias")


@dataclass(frozen=True, eq=False)
class Sample:
    """One shape. `kwargs` are the op's keyword arguments."""

    N: int
    C: int
    H: int
    W: int
    C_out: int
    K: tuple[int, int] = (3, 3)
    bias: bool = True
    channels_last: bool = False
    kwargs: dict = field(default_factory=dict)

    def __str__(self) -> str:
        words = [f"{self.N}x{self.C}x{self.H}x{self.W}", f"k{self.K[0]}x{self.K[1]}", f"to{self.C_out}"]
        words += [f"{name}={str(value).replace(' ', '')}" for name, value in self.kwargs.items()]
        words += ["" if self.bias else "nobias", "nhwc" if self.channels_last else ""]
        return "-".join(filter(None, words))

    def inputs(
        self, dtype: torch.dtype, seed: int = 0, integers: bool = False
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """x, weight, bias: drawn in fp32, rounded to the dtype. With `integers`, so small that sums of products
        stay below 256 and every float type holds them exactly."""
        generator = torch.Generator().manual_seed(seed)
        groups = self.kwargs.get("groups", 1)
        fan_in = self.C // groups * self.K[0] * self.K[1]

        def draw(*shape: int, scale: float = 1.0) -> Tensor:
            if integers:
                most = 2 if fan_in < 300 else 1
                return torch.randint(-most, most + 1, shape, generator=generator).to(dtype)
            return (torch.randn(shape, generator=generator) * scale).to(dtype)

        x = draw(self.N, self.C, self.H, self.W)
        if self.channels_last:
            x = x.to(memory_format=torch.channels_last)
        weight = draw(self.C_out, self.C // groups, *self.K, scale=fan_in**-0.5)
        return x, weight, draw(self.C_out) if self.bias else None

    def geometry(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Geometry:
        """The kwargs, normalised; uneven "same" padding is not part of a sample."""
        defaults = dict(
            stride=1, padding=0, dilation=1, groups=1, pool_size=None, pool_stride=None,
            pool_padding=0, pool_dilation=1, ceil_mode=False, return_indices=False,
        )  # fmt: skip
        return normalise(x, weight, bias, **{**defaults, **self.kwargs})[0]


POOL = dict(padding=1, pool_size=2)

# fmt: off
SAMPLES = (
    Sample(2, 3, 12, 12, 8, kwargs=POOL),  # first layer of an image network
    Sample(2, 3, 13, 11, 5, kwargs=dict(padding=1)),  # no pool, odd sizes, few outputs
    Sample(2, 16, 16, 16, 16, kwargs=POOL),  # Winograd without tails
    Sample(1, 19, 15, 17, 23, kwargs=POOL, channels_last=True),  # Winograd with tails everywhere
    Sample(3, 32, 9, 10, 40, kwargs=dict(pool_size=2, ceil_mode=True)),  # no padding, windows cut at the border
    Sample(2, 24, 10, 8, 24, kwargs=dict(padding=2), bias=False),  # no pool, wide padding
    Sample(1, 160, 10, 18, 72, kwargs=POOL, bias=False),  # many channels, one image
    Sample(1, 9, 37, 70, 33, kwargs=POOL, channels_last=True),  # many tiles, few channels
    Sample(5, 1, 2, 2, 1, kwargs=POOL),  # one window an image
    Sample(1, 8, 7, 9, 8, K=(1, 1), kwargs=dict(pool_size=2)),  # pointwise
    Sample(2, 4, 14, 14, 16, K=(5, 5), kwargs=dict(padding=2, pool_size=2)),
    Sample(2, 2, 11, 19, 33, K=(5, 5), kwargs=dict(padding=2), channels_last=True),
    Sample(
        1, 3, 23, 21, 12, K=(7, 7),
        kwargs=dict(stride=2, padding=3, pool_size=3, pool_stride=2, pool_padding=1),
    ),
    Sample(2, 6, 12, 13, 8, kwargs=dict(stride=(2, 1), padding=(0, 1), pool_size=(2, 3)), channels_last=True),
    Sample(1, 8, 11, 12, 12, kwargs=dict(groups=4, padding=1, pool_size=2)),
    Sample(1, 5, 14, 15, 6, kwargs=dict(dilation=2, padding=2, pool_size=2, pool_dilation=2, pool_stride=1)),
    Sample(2, 4, 10, 10, 4, K=(3, 1), kwargs=dict(padding=(1, 0), pool_size=3, pool_stride=1, pool_padding=1)),
    Sample(2, 70, 12, 14, 20, K=(1, 1)),  # many channels, pointwise
    Sample(2, 36, 17, 15, 19, kwargs=dict(stride=2, padding=1, pool_size=2)),  # blocks of channels, rows of 8
    Sample(1, 24, 20, 26, 14, K=(5, 5), kwargs=dict(padding=2, pool_size=3, pool_stride=2, ceil_mode=True)),
    Sample(1, 12, 22, 30, 40, K=(7, 7), kwargs=dict(stride=2, padding=3, pool_size=2), channels_last=True),
)
# fmt: on


@dataclass(frozen=True)
class PooledRun(Run):
    """`chosen` is the fp64 value (after bias and ReLU) at the position the record names, 0 where it says closed;
    None without a pool."""

    chosen: Tensor | None


def run_plan(
    sample: Sample,
    plan: Plan,
    dtype: torch.dtype,
    seed: int,
    *,
    device: str = "cpu",
    integers: bool = False,
    input_gradient: bool | None = None,
) -> PooledRun:
    """The sample by one backend and algorithm (`make_plan`).

    `input_gradient`: whether x requires grad; by default wherever the plan's own backward can serve it.
    """
    if input_gradient is None:
        input_gradient = plan.backward_algorithm != "direct"

    def compute(x: Tensor, weight: Tensor, bias: Tensor | None, g: Geometry) -> tuple[Tensor, Tensor | None]:
        return compute_plan(plan, x, weight, bias, True, True)

    return _run(sample, dtype, seed, compute, device, integers, input_gradient)


def run_eager(
    sample: Sample, dtype: torch.dtype, seed: int, *, device: str = "cpu", integers: bool = False
) -> PooledRun:
    """The sample by eager PyTorch in the dtype."""

    def compute(x: Tensor, weight: Tensor, bias: Tensor | None, g: Geometry) -> tuple[Tensor, Tensor]:
        y = F.relu(F.conv2d(x, weight, bias, g.stride, g.padding, g.dilation, g.groups))
        if not g.pool_size:
            return y, None
        pool = (g.pool_size, g.pool_stride, g.pool_padding, g.pool_dilation, g.ceil_mode)
        output, indices = F.max_pool2d(y, *pool, return_indices=True)
        return output, offsets_from_indices(indices, y.shape[3], g).masked_fill(output <= 0, 255)

    return _run(sample, dtype, seed, compute, device, integers, True)


def _run(
    sample: Sample,
    dtype: torch.dtype,
    seed: int,
    compute: Callable,
    device: str,
    integers: bool,
    input_gradient: bool,
) -> PooledRun:
    drawn = sample.inputs(dtype, seed, integers)
    x, weight, bias = (None if t is None else t.to(device).requires_grad_() for t in drawn)
    x.requires_grad_(input_gradient)
    g = sample.geometry(x, weight, bias)
    output, record = compute(x, weight, bias, g)
    generator = torch.Generator().manual_seed(seed + 1000)
    if integers:
        grad_output = torch.randint(-2, 3, output.shape, generator=generator).to(dtype)
    else:
        grad_output = torch.randn(output.shape, generator=generator).to(dtype)
    inputs = [t is not None and t.requires_grad for t in (x, weight, bias)]
    leaves = [t for t, wanted in zip((x, weight, bias), inputs, strict=True) if wanted]
    gradients = iter(torch.autograd.grad(output, leaves, grad_output.to(device)))
    values = [output.detach().cpu(), *(next(gradients).cpu() if wanted else None for wanted in inputs)]
    return PooledRun(tuple(values), *_truth(*drawn, grad_output, values[0], record, g))


def _truth(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    grad_output: Tensor,
    output: Tensor,
    record: Tensor | None,
    g: Geometry,
) -> tuple[tuple[Tensor | None, ...], Tensor | None]:
    """fp64 output and gradients; these under the run's own record: near-ties send a whole gradient elsewhere.
    And the fp64 value the record chose."""
    x, weight, grad_output = x.double(), weight.double(), grad_output.double()
    bias = None if bias is None else bias.double()
    y = F.relu(F.conv2d(x, weight, bias, g.stride, g.padding, g.dilation, g.groups))
    truth, chosen = y, None
    if g.pool_size:
        record = record.cpu()
        truth = F.max_pool2d(y, g.pool_size, g.pool_stride, g.pool_padding, g.pool_dilation, g.ceil_mode)
        indices = indices_from_record(record, tuple(y.shape[2:]), g)
        chosen = y.flatten(2).gather(2, indices.flatten(2)).view_as(truth).masked_fill(record == 255, 0)
        grad_conv = reference_expand(grad_output, record, tuple(y.shape[2:]), g)
    else:
        grad_conv = grad_output.masked_fill(output <= 0, 0)
    grad_input, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
        grad_conv, x, weight, [weight.shape[0]], g.stride, g.padding, g.dilation, False, (0, 0), g.groups,
        [True] * 3,
    )  # fmt: skip
    return (truth, grad_input, grad_weight, None if bias is None else grad_bias), chosen


_eager = once_for_all_plans(run_eager)


def reports(sample: Sample, plan: Plan, dtype: torch.dtype, device: str = "cpu") -> dict[str, ErrorReport]:
    """The error rule's report for the output and each gradient of one sample under one plan.

    With a pool also "record": the fp64 value at the recorded position against the window's maximum. A position
    is at most twice as wrong as the two values it was chosen by, so it is judged against the output's errors.
    """
    ours = [run_plan(sample, plan, dtype, seed, device=device) for seed in SEEDS]
    eager = _eager(sample, dtype, device)
    result = reports_of(ours, eager, NAMES, dtype)
    if ours[0].chosen is not None:
        result["record"] = judge(
            [
                (o.chosen, o.truths[0], 2 * (e.values[0].double() - e.truths[0]), torch.zeros(()))
                for o, e in zip(ours, eager, strict=True)
            ],
            dtype,
        )
    return result


def _plan(sample: Sample, candidate: Candidate, dtype: torch.dtype, device: str) -> Plan | None:
    x, weight, bias = (None if t is None else t.to(device) for t in sample.inputs(dtype))
    g = sample.geometry(x, weight, bias)
    if candidate.refusal(x, weight, bias, g) is not None:
        return None
    return make_plan(Choice(candidate.backend, candidate.algorithm), g)


def _algorithm(plan: Plan, quantity: str) -> str:
    return plan.algorithm if quantity in ("output", "record") else plan.backward_algorithm


OPS = (CheckedOp("conv_relu_maxpool", SAMPLES, CANDIDATES, _plan, reports, _algorithm),)
