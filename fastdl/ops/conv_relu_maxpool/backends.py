"""How each backend and algorithm computes the op, and when it refuses to."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ... import _extension, dispatch
from ...dispatch import Candidate, Choice
from . import registration  # noqa: F401, the operators below must be defined
from .geometry import Geometry

# An overload called directly skips 1 us of overload resolution.
_conv_relu_maxpool = torch.ops.fastdl.conv_relu_maxpool.default
_conv_relu_maxpool_backward = torch.ops.fastdl.conv_relu_maxpool_backward.default
_bias_relu_maxpool = torch.ops.fastdl.bias_relu_maxpool.default
_bias_relu_maxpool_backward = torch.ops.fastdl.bias_relu_maxpool_backward.default

# The codes that cross the border to C++.
ALGORITHMS = {"composed": 0, "winograd": 1, "direct": 2, "implicit_gemm": 3}

_SINGLE = (torch.float32, torch.bfloat16, torch.float16)


def _cpu(x: Tensor) -> str | None:
    if x.device.type != "cpu":
        return f"x is on {x.device}"
    return None if _extension.cpu.loaded else f"CPU kernels are not loaded: {_extension.cpu.error}"


def refuse_cpu_winograd(x: Tensor, weight: Tensor, bias: Tensor | None, g: Geometry) -> str | None:
    if (reason := _cpu(x)) is not None:
        return reason
    if dispatch.settings.precision == "strict":
        return "precision 'strict' refuses Winograd's error"
    return _winograd_shape(x, weight, g)


def _winograd_shape(x: Tensor, weight: Tensor, g: Geometry) -> str | None:
    if x.dtype not in _SINGLE:
        return f"no kernel for {x.dtype}"
    if (
        weight.shape[2] != 3
        or weight.shape[3] != 3
        or g.stride != (1, 1)
        or g.dilation != (1, 1)
        or g.groups != 1
    ):
        return "only 3x3, stride 1, dilation 1, groups 1"
    if g.pool_size and (g.pool_size, g.pool_stride, g.pool_padding, g.pool_dilation) != (
        (2, 2),
        (2, 2),
        (0, 0),
        (1, 1),
    ):
        return "only a 2x2 pool with stride 2, or none"
    if x.shape[1] < 8 or weight.shape[0] < 8:
        return f"fewer than 8 channels ({x.shape[1]} in, {weight.shape[0]} out) are faster direct"
    return None


def refuse_cpu_direct(x: Tensor, weight: Tensor, bias: Tensor | None, g: Geometry) -> str | None:
    if (reason := _cpu(x)) is not None:
        return reason
    if x.dtype not in _SINGLE:
        return f"no kernel for {x.dtype}"
    if g.groups != 1:
        return "only groups 1"
    if x.shape[1] > 4:
        return f"more than 4 input channels ({x.shape[1]}) are faster composed"
    return None


def refuse_cpu_composed(x: Tensor, weight: Tensor, bias: Tensor | None, g: Geometry) -> str | None:
    return _cpu(x)


CANDIDATES = [
    Candidate("cpu", "direct", refuse_cpu_direct),
    Candidate("cpu", "winograd", refuse_cpu_winograd),
    Candidate("cpu", "composed", refuse_cpu_composed),
]


class Plan(NamedTuple):
    """Everything about a call that follows from metadata: decided once a signature, then remembered."""

    backend: str
    algorithm: str
    backward_algorithm: str
    g: Geometry
    packed: list[int]
    packed_pool: list[int]


def make_plan(choice: Choice, g: Geometry) -> Plan:
    """The plan of a choice. The backward algorithm is decided here: in backward the settings are another thread's."""
    return Plan(*choice, _backward_algorithm(choice), g, g.packed(), g.packed_pool())


def _backward_algorithm(choice: Choice) -> str:
    if choice.backend == "triton":
        return "implicit_gemm"
    return "winograd" if choice.algorithm == "winograd" else "composed"


def forward(
    plan: Plan, x: Tensor, weight: Tensor, bias: Tensor | None, save_record: bool
) -> tuple[Tensor, Tensor]:
    """(output, record); the record is empty unless asked for and pooled."""
    if plan.algorithm == "composed":
        g = plan.g
        # oneDNN adds the bias for free and before it rounds; cuDNN would take a kernel of its own for it
        early, late = (bias, None) if plan.backend == "cpu" else (None, bias)
        conv = torch.conv2d(x, weight, early, g.stride, g.padding, g.dilation, g.groups)
        return _bias_relu_maxpool(conv, late, plan.packed_pool, save_record)
    op = torch.ops.fastdl.conv_relu_maxpool_triton if plan.backend == "triton" else _conv_relu_maxpool
    return op(x, weight, bias, plan.packed, ALGORITHMS[plan.algorithm], save_record)


def backward(
    plan: Plan,
    grad_output: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    saved: Tensor,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, weight and bias, None where not needed; `saved` is the record, or without a pool the output."""
    need_input, need_weight, need_bias = needs[0], needs[1], needs[2] and bias is not None
    if plan.backward_algorithm == "composed":
        g = plan.g
        CH, CW = g.conv_size(x, weight)
        grad_conv, grad_bias = _bias_relu_maxpool_backward(grad_output, saved, CH, CW, plan.packed_pool)
        grad_input, grad_weight, _ = torch.ops.aten.convolution_backward(
            grad_conv, x, weight, None, g.stride, g.padding, g.dilation, False, (0, 0), g.groups,
            (need_input, need_weight, False),
        )  # fmt: skip
    else:
        op = _conv_relu_maxpool_backward
        if plan.backend == "triton":
            op = torch.ops.fastdl.conv_relu_maxpool_backward_triton
        code = ALGORITHMS[plan.backward_algorithm]
        grad_input, grad_weight, grad_bias = op(
            grad_output, x, weight, saved, plan.packed, code, need_input, need_weight, need_bias
        )
    return (
        grad_input if need_input else None,
        grad_weight if need_weight else None,
        grad_bias if need_bias else None,
    )
