"""The raw operators: schemas, the reference behind every device without a kernel, shapes for fake tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from ..memory_format import is_channels_last
from ..raw_operators import define
from . import schema
from .geometry import Geometry
from .reference import reference_bias_relu_maxpool, reference_expand


def conv_relu_maxpool(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: list[int], algorithm: int, save_record: bool
) -> tuple[Tensor, Tensor]:
    g = Geometry.unpack(geometry)
    conv = torch.conv2d(x, weight, bias, g.stride, g.padding, g.dilation, g.groups)
    return _without_record(*reference_bias_relu_maxpool(conv, None, g), save_record)


def conv_relu_maxpool_backward(
    grad_output: Tensor,
    x: Tensor,
    weight: Tensor,
    saved: Tensor,
    geometry: list[int],
    algorithm: int,
    *needs: bool,
) -> tuple[Tensor, ...]:
    g = Geometry.unpack(geometry)
    grad_conv = _expand(grad_output, saved, g.conv_size(x, weight), g)
    gradients = torch.ops.aten.convolution_backward(
        grad_conv,
        x,
        weight,
        [weight.shape[0]],
        g.stride,
        g.padding,
        g.dilation,
        False,
        (0, 0),
        g.groups,
        needs,
    )
    return tuple(x.new_empty(0) if t is None else t for t in gradients)


def bias_relu_maxpool(
    conv: Tensor, bias: Tensor | None, pool: list[int], save_record: bool
) -> tuple[Tensor, Tensor]:
    return _without_record(*reference_bias_relu_maxpool(conv, bias, Geometry.unpack_pool(pool)), save_record)


def bias_relu_maxpool_backward(
    grad_output: Tensor, saved: Tensor, CH: int, CW: int, pool: list[int]
) -> tuple[Tensor, Tensor]:
    grad_conv = _expand(grad_output, saved, (CH, CW), Geometry.unpack_pool(pool))
    return grad_conv, grad_conv.sum((0, 2, 3))


def _expand(grad_output: Tensor, saved: Tensor, conv_size: tuple[int, int], g: Geometry) -> Tensor:
    if g.pool_size:
        return reference_expand(grad_output, saved, conv_size, g)
    return grad_output.masked_fill(saved <= 0, 0)


def _without_record(output: Tensor, record: Tensor, save_record: bool) -> tuple[Tensor, Tensor]:
    return output, record if save_record else output.new_empty(0, dtype=torch.uint8)


def _image(like: Tensor, size: tuple[int, ...], dtype: torch.dtype | None = None) -> Tensor:
    # channels_last is kept; what is ambiguous or neither becomes contiguous
    memory_format = torch.channels_last if is_channels_last(like) else torch.contiguous_format
    return torch.empty(size, dtype=dtype or like.dtype, device=like.device, memory_format=memory_format)


def _fake_output(
    like: Tensor, size: tuple[int, ...], g: Geometry, save_record: bool
) -> tuple[Tensor, Tensor]:
    record_wanted = save_record and len(g.pool_size) > 0
    record = _image(like, size, torch.uint8) if record_wanted else like.new_empty(0, dtype=torch.uint8)
    return _image(like, size), record


def fake_conv_relu_maxpool(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: list[int], algorithm: int, save_record: bool
) -> tuple[Tensor, Tensor]:
    g = Geometry.unpack(geometry)
    size = (x.shape[0], weight.shape[0], *g.output_size(g.conv_size(x, weight)))
    return _fake_output(x, size, g, save_record)


def fake_conv_relu_maxpool_backward(
    grad_output: Tensor,
    x: Tensor,
    weight: Tensor,
    saved: Tensor,
    geometry: list[int],
    algorithm: int,
    *needs: bool,
) -> tuple[Tensor, ...]:
    return (
        _image(x, x.shape) if needs[0] else x.new_empty(0),
        torch.empty_like(weight, memory_format=torch.contiguous_format) if needs[1] else x.new_empty(0),
        x.new_empty(weight.shape[0]) if needs[2] else x.new_empty(0),
    )


def fake_bias_relu_maxpool(
    conv: Tensor, bias: Tensor | None, pool: list[int], save_record: bool
) -> tuple[Tensor, Tensor]:
    g = Geometry.unpack_pool(pool)
    return _fake_output(conv, (*conv.shape[:2], *g.output_size(conv.shape[2:])), g, save_record)


def fake_bias_relu_maxpool_backward(
    grad_output: Tensor, saved: Tensor, CH: int, CW: int, pool: list[int]
) -> tuple[Tensor, Tensor]:
    grad_conv = _image(saved, (*grad_output.shape[:2], CH, CW), grad_output.dtype)
    return grad_conv, grad_output.new_empty(grad_output.shape[1])


library = define(schema.SCHEMAS, globals())
