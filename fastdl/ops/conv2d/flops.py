"""Flop formulas for torch.utils.flop_counter: a convolution's."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import conv_flop_count, register_flop_formula

_ops = torch.ops.fastdl


@register_flop_formula(_ops.conv2d)
def _forward(x_shape, weight_shape, *args, out_shape=None, **kwargs) -> int:
    return conv_flop_count(x_shape, weight_shape, out_shape)


@register_flop_formula(_ops.conv2d_backward)
def _backward(
    grad_output_shape, x_shape, weight_shape, geometry, algorithm, need_input, need_weight, *args, **kwargs
) -> int:
    return conv_flop_count(x_shape, weight_shape, grad_output_shape) * (int(need_input) + int(need_weight))
