"""How each backend and algorithm carries a plan out."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...dispatch import Choice
from .. import products
from ..conv_relu_maxpool.backends import ALGORITHMS, convolve
from ..conv_relu_maxpool.geometry import Geometry
from . import packed_weights, registration, triton_ops  # noqa: F401, the operators below must be defined
from .activations import ACTIVATIONS, activate, activate_
from .epilogue import Epilogue
from .normalisation import Normalisation

# Elements from which a pass of our own saves more than the 10 us that calling it takes.
_MANY = 2**14
# What finishes a normalisation in its place.
NORMALISED = ("winograd", "implicit_gemm", "depthwise")

# Overloads, called directly: it saves 1 us of overload resolution.
_forward = torch.ops.fastdl.conv2d.default
_batch_norm = torch.ops.fastdl.conv2d_batch_norm.default
_backward = torch.ops.fastdl.conv2d_backward.default
_epilogue = torch.ops.fastdl.conv2d_epilogue.default
# cpu and cuda are two keys of the same operator; Triton's is an operator of its own.
_EPILOGUES = {"cpu": _epilogue, "cuda": _epilogue, "triton": torch.ops.fastdl.conv2d_epilogue_triton.default}


class Plan(NamedTuple):
    """Everything about a call that follows from metadata: decided once a signature, then remembered."""

    backend: str
    algorithm: str
    g: Geometry
    packed: list[int]
    by_torch: bool


class OneOperator(NamedTuple):
    """activation(norm(conv2d(x)) + residual) by a kernel, in one call that checks what it reads."""

    packed: list[int]
    algorithm: int

    def __call__(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        norm: Normalisation,
        residual: Tensor | None,
        activation: str | None,
    ) -> Tensor:
        code = ACTIVATIONS[activation]
        return _batch_norm(x, weight, bias, *norm, residual, code, self.packed, self.algorithm)


def one_operator(plan: Plan) -> OneOperator:
    """By a plan with a kernel of its own, one of NORMALISED."""
    return OneOperator(plan.packed, ALGORITHMS[plan.algorithm])


def make_plan(choice: Choice, g: Geometry) -> Plan:
    """The plan of a choice."""
    return Plan(*choice, g, g.packed(), choice.algorithm in ("composed", "product"))


def forward(
    plan: Plan, x: Tensor, weight: Tensor, bias: Tensor | None, epilogue: Epilogue, training: bool
) -> Tensor:
    """The output; `training`: the weight is about to change, nothing made of it is worth keeping."""
    scale, residual, activation = epilogue
    if plan.algorithm == "onednn":
        y = packed_weights.forward(plan.g, x, weight, bias, epilogue)
        if y is not None:
            return y
    elif not plan.by_torch:
        code = ALGORITHMS[plan.algorithm]
        return _forward(
            x, weight, bias, scale, residual, ACTIVATIONS[activation], plan.packed, code, training
        )
    early = bias if scale is None else None
    if plan.algorithm == "product":
        y = _image(products.linear(_pixels(x), weight.flatten(1), early), x)
    else:
        y = convolve(x, weight, early, plan.g)
    if scale is None and residual is None and not _slow_in_torch(activation, y):
        return activate_(y, activation)
    _EPILOGUES[plan.backend](y, None if scale is None else bias, scale, residual, ACTIVATIONS[activation])
    return y


def recorded(plan: Plan, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Torch's convolution, or its product where an image is one position, with torch's gradients."""
    if plan.algorithm != "product":
        return convolve(x, weight, bias, plan.g)
    operands = _pixels(x), weight.flatten(1), bias
    slow = products.slow_in_torch(x)
    y = products.through_float32(F.linear, *operands) if slow else F.linear(*operands)
    return _image(y, x)


def _pixels(x: Tensor) -> Tensor:
    """[N, C, H, W] as [N * H * W, C]: a view in channels_last, or where an image is one position."""
    return x.permute(0, 2, 3, 1).flatten(0, 2)


def _image(y: Tensor, x: Tensor) -> Tensor:
    """[N * H * W, C_out] as images like x in channels_last."""
    N, _, H, W = x.shape
    return y.view(N, H, W, y.shape[1]).permute(0, 3, 1, 2)


def _slow_in_torch(activation: str | None, y: Tensor) -> bool:
    """Whether the pass is faster than torch's activation of a finished convolution, in place."""
    many = y.is_cpu and y.dtype is torch.float32 and y.numel() >= _MANY
    return many and activation not in (None, "relu", "relu6", "hardswish")


def finish(y: Tensor, residual: Tensor | None, activation: str | None) -> Tensor:
    """What follows a recorded convolution, in its place where it can."""
    y = y if residual is None else y.add_(residual)
    return y.relu_() if activation == "relu" else activate(y, activation)


def backward(
    plan: Plan,
    grad_output: Tensor,
    x: Tensor,
    weight: Tensor,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, weight and bias, None where not needed."""
    gradients = _backward(grad_output, x, weight, plan.packed, ALGORITHMS[plan.algorithm], *needs)
    return tuple(t if needed else None for t, needed in zip(gradients, needs, strict=True))
