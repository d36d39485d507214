"""Flop formulas for torch.utils.flop_counter: two products forward, five backward; what is hidden counts too."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import register_flop_formula

_ops = torch.ops.fastdl


@register_flop_formula(_ops.attention)
def _forward(q_shape, k_shape, v_shape, *args, out_shape=None, **kwargs) -> int:
    return 2 * _pairs(q_shape, k_shape, args) * (q_shape[-1] + v_shape[-1])


@register_flop_formula(_ops.attention_backward)
def _backward(grad_output_shape, grad_lse_shape, q_shape, k_shape, v_shape, *args, **kwargs) -> int:
    return 2 * _pairs(q_shape, k_shape, args[2:]) * (3 * q_shape[-1] + 2 * v_shape[-1])


def _pairs(q_shape: list[int], k_shape: list[int], args: tuple) -> int:
    """Queries times keys, over all heads; packed sequences count as equally long."""
    if len(q_shape) == 4:
        B, H, L_q, _ = q_shape
        return B * H * L_q * k_shape[2]
    sequences = max(1, args[5][0] - 1)
    return q_shape[1] * q_shape[0] * k_shape[0] // sequences
