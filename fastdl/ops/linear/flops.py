"""Flop formulas for torch.utils.flop_counter: a fused op counts as the product it stands for."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import register_flop_formula

_ops = torch.ops.fastdl


@register_flop_formula([_ops.linear, _ops.linear_triton])
def _forward(x_shape, weight_shape, *args, out_shape=None, **kwargs) -> int:
    rows = 1
    for size in x_shape[:-1]:
        rows *= size
    return 2 * rows * weight_shape[0] * weight_shape[1]


@register_flop_formula(_ops.linear_product)
def _product(left_shape, right_shape, *args, out_shape=None, **kwargs) -> int:
    return 2 * left_shape[0] * left_shape[1] * right_shape[1]


@register_flop_formula(
    [
        _ops.linear_activation,
        _ops.linear_activation_triton,
        _ops.linear_activation_inplace,
        _ops.linear_activation_inplace_triton,
        _ops.linear_activation_backward,
        _ops.linear_activation_backward_triton,
    ]
)
def _pass(*args, **kwargs) -> int:
    return 0
