"""Flop formulas for torch.utils.flop_counter: a fused op counts as the convolution it stands for."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import conv_flop_count, register_flop_formula

from .geometry import Geometry

_ops = torch.ops.fastdl


def _conv_size(x_shape: list[int], weight_shape: list[int], geometry: list[int]) -> tuple[int, int]:
    g = Geometry.unpack(geometry)
    return tuple(
        (x_shape[2 + i] + 2 * g.padding[i] - g.dilation[i] * (weight_shape[2 + i] - 1) - 1) // g.stride[i] + 1
        for i in (0, 1)
    )


@register_flop_formula(_ops.conv_relu_maxpool)
def _forward(x_shape, weight_shape, bias_shape, geometry, *args, out_shape=None, **kwargs) -> int:
    out = [x_shape[0], weight_shape[0], *_conv_size(x_shape, weight_shape, geometry)]
    return conv_flop_count(x_shape, weight_shape, out)


@register_flop_formula(_ops.conv_relu_maxpool_backward)
def _backward(
    grad_output_shape,
    x_shape,
    weight_shape,
    saved_shape,
    geometry,
    algorithm,
    need_input,
    need_weight,
    *args,
    **kwargs,
) -> int:
    forward = _forward(x_shape, weight_shape, None, geometry)
    return forward * (int(need_input) + int(need_weight))


@register_flop_formula([_ops.bias_relu_maxpool, _ops.bias_relu_maxpool_backward])
def _pass(*args, **kwargs) -> int:
    return 0
