"""How each backend and algorithm carries a plan out."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...dispatch import Choice
from .. import products
from . import registration, triton_ops  # noqa: F401, the operators below must be defined
from .geometry import Geometry

# The codes that cross the border to the kernels.
ALGORITHMS = {
    "composed": 0,
    "winograd": 1,
    "direct": 2,
    "implicit_gemm": 3,
    "implicit_gemm_tf32": 4,
    "depthwise": 5,
}


class RawOperators(NamedTuple):
    """The family's raw operators of one backend. An overload called directly skips 1 us of overload resolution."""

    forward: torch._ops.OpOverload
    backward: torch._ops.OpOverload
    pass_forward: torch._ops.OpOverload
    pass_backward: torch._ops.OpOverload


def _raw(suffix: str) -> RawOperators:
    names = (
        "conv_relu_maxpool",
        "conv_relu_maxpool_backward",
        "bias_relu_maxpool",
        "bias_relu_maxpool_backward",
    )
    return RawOperators(*(getattr(torch.ops.fastdl, name + suffix).default for name in names))


# cpu and cuda are two keys of the same operators; Triton's are operators of their own.
_compiled, _triton = _raw(""), _raw("_triton")
RAW = {"cpu": _compiled, "cuda": _compiled, "triton": _triton}


class Plan(NamedTuple):
    """Everything about a call that follows from metadata: decided once a signature, then remembered."""

    backend: str
    algorithm: str
    backward_algorithm: str
    g: Geometry
    packed: list[int]
    packed_pool: list[int]
    # Nothing is left to fuse: torch's convolution, which adds the bias, and its ReLU in place.
    torch_alone: bool


def make_plan(choice: Choice, g: Geometry) -> Plan:
    """The plan of a choice. The backward algorithm is decided here: in backward the settings are another thread's."""
    torch_alone = choice == ("cpu", "composed") and len(g.pool_size) == 0
    return Plan(*choice, _backward_algorithm(choice), g, g.packed(), g.packed_pool(), torch_alone)


def _backward_algorithm(choice: Choice) -> str:
    has_own = choice.backend == "triton" or choice.algorithm in ("winograd", "direct")
    return choice.algorithm if has_own else "composed"


def forward(
    plan: Plan, x: Tensor, weight: Tensor, bias: Tensor | None, save_record: bool
) -> tuple[Tensor, Tensor | None]:
    """(output, record); the record is empty or None unless asked for and pooled."""
    if plan.torch_alone:
        return convolve(x, weight, bias, plan.g).relu_(), None
    raw = RAW[plan.backend]
    if plan.algorithm == "composed":
        # oneDNN adds the bias for free and before it rounds; cuDNN would take a kernel of its own for it
        early, late = (bias, None) if plan.backend == "cpu" else (None, bias)
        conv = convolve(x, weight, early, plan.g)
        return raw.pass_forward(conv, late, plan.packed_pool, save_record)
    return raw.forward(x, weight, bias, plan.packed, ALGORITHMS[plan.algorithm], save_record)


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, g: Geometry) -> Tensor:
    """Torch's convolution."""
    if products.slow_in_torch(x):
        return products.through_float32(lambda *single: _conv2d(*single, g), x, weight, bias)
    return _conv2d(x, weight, bias, g)


def _conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, g: Geometry) -> Tensor:
    return torch.conv2d(x, weight, bias, g.stride, g.padding, g.dilation, g.groups)


def convolve_backward(
    grad_conv: Tensor, x: Tensor, weight: Tensor, g: Geometry, need_input: bool, need_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of x and weight by torch."""
    dtype, slow = x.dtype, products.slow_in_torch(x)
    if slow:
        grad_conv, x, weight = grad_conv.float(), x.float(), weight.float()
    gradients = torch.ops.aten.convolution_backward.default(
        grad_conv, x, weight, None, g.stride, g.padding, g.dilation, False, (0, 0), g.groups,
        (need_input, need_weight, False),
    )[:2]  # fmt: skip
    return tuple(t if t is None or not slow else t.to(dtype) for t in gradients)


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
    raw = RAW[plan.backend]
    # "direct" has grad_weight and grad_bias only: a first layer's input needs no gradient
    if plan.backward_algorithm == "composed" or (plan.backward_algorithm == "direct" and need_input):
        g = plan.g
        CH, CW = g.conv_size(x, weight)
        grad_conv, grad_bias = raw.pass_backward(grad_output, saved, CH, CW, plan.packed_pool)
        grad_input, grad_weight = convolve_backward(grad_conv, x, weight, g, need_input, need_weight)
    else:
        code = ALGORITHMS[plan.backward_algorithm]
        grad_input, grad_weight, grad_bias = raw.backward(
            grad_output, x, weight, saved, plan.packed, code, need_input, need_weight, need_bias
        )
    return (
        grad_input if need_input else None,
        grad_weight if need_weight else None,
        grad_bias if need_bias else None,
    )
