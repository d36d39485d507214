"""The raw operators: the reference behind every device without a kernel, shapes for fake tensors."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from ..conv_relu_maxpool.geometry import Geometry
from ..conv_relu_maxpool.registration import fake_conv_relu_maxpool, fake_conv_relu_maxpool_backward
from ..raw_operators import define
from . import schema
from .activations import activate, named
from .normalisation import Normalisation
from .reference import reference


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    residual: Tensor | None,
    activation: int,
    geometry: list[int],
    algorithm: int,
    training: bool,
) -> Tensor:
    return reference(x, weight, bias, scale, residual, named(activation), Geometry.unpack(geometry))


def conv2d_batch_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    eps: float,
    residual: Tensor | None,
    activation: int,
    geometry: list[int],
    algorithm: int,
) -> Tensor:
    scale, shift = Normalisation(running_mean, running_var, norm_weight, norm_bias, eps).scale_and_shift(bias)
    return reference(x, weight, shift, scale, residual, named(activation), Geometry.unpack(geometry))


def conv2d_backward(
    grad_output: Tensor, x: Tensor, weight: Tensor, geometry: list[int], algorithm: int, *needs: bool
) -> tuple[Tensor, ...]:
    g = Geometry.unpack(geometry)
    gradients = torch.ops.aten.convolution_backward(
        grad_output, x, weight, [weight.shape[0]], g.stride, g.padding, g.dilation, False, (0, 0), g.groups,
        needs,
    )  # fmt: skip
    return tuple(x.new_empty(0) if t is None else t for t in gradients)


def conv2d_epilogue(
    y: Tensor, bias: Tensor | None, scale: Tensor | None, residual: Tensor | None, activation: int
) -> None:
    if scale is not None:
        y.mul_(scale[:, None, None])
    if bias is not None:
        y.add_(bias[:, None, None])
    if residual is not None:
        y.add_(residual)
    if activation:
        y.copy_(activate(y, named(activation)))


def weight_fingerprint(weight: Tensor) -> int:
    words = weight.detach().contiguous().view(torch.uint8).cpu().numpy().tobytes()
    return int.from_bytes(hashlib.blake2b(words, digest_size=8).digest(), "little", signed=True)


def fake_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    residual: Tensor | None,
    activation: int,
    geometry: list[int],
    algorithm: int,
    training: bool,
) -> Tensor:
    return fake_conv_relu_maxpool(x, weight, bias, geometry, algorithm, False)[0]


def fake_conv2d_batch_norm(x: Tensor, weight: Tensor, *more: object) -> Tensor:
    *_, geometry, algorithm = more
    return fake_conv_relu_maxpool(x, weight, None, geometry, algorithm, False)[0]


def fake_conv2d_backward(
    grad_output: Tensor, x: Tensor, weight: Tensor, geometry: list[int], algorithm: int, *needs: bool
) -> tuple[Tensor, ...]:
    return fake_conv_relu_maxpool_backward(grad_output, x, weight, grad_output, geometry, algorithm, *needs)


def fake_conv2d_epilogue(
    y: Tensor, bias: Tensor | None, scale: Tensor | None, residual: Tensor | None, activation: int
) -> None:
    """Nothing is made."""


def fake_weight_fingerprint(weight: Tensor) -> int:
    raise NotImplementedError("the fingerprint of a tensor without values")


library = define(schema.SCHEMAS, globals())
