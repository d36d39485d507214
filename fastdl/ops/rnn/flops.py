"""Flop formulas for torch.utils.flop_counter: the products of the recurrence, and of the input where it is inside."""

from __future__ import annotations

import math

import torch
from torch.utils.flop_counter import register_flop_formula

from .structure import Structure

_ops = torch.ops.fastdl


@register_flop_formula([_ops.rnn_sequence, _ops.rnn_sequence_triton, _ops.rnn_sequence_triton_tf32])
def _forward(x_shape, h_0_shape, c_0_shape, weights, *args, out_shape=None, **kwargs) -> int:
    """`args`: the context, then the structure."""
    return _products(math.prod(x_shape[:-1]), weights, Structure.unpack(args[6]))


@register_flop_formula(
    [
        _ops.rnn_sequence_backward,
        _ops.rnn_sequence_backward_triton,
        _ops.rnn_sequence_backward_triton_tf32,
    ]
)
def _backward(
    grad_output, grad_h_n, grad_c_n, h_0, c_0, weights, output, gates, cells, rstd, *args, **kwargs
) -> int:
    # grad_h alone; the products over all rows are operators of their own
    return _products(math.prod(output[:-1]), weights, Structure.unpack(args[6]))


@register_flop_formula(_ops.rnn_step)
def _step(x_shape, h_shape, c_shape, weights, cell, out_shape=None, **kwargs) -> int:
    return 2 * x_shape[0] * sum(math.prod(shape) for shape in weights[:2])


def _products(rows: int, weights: list[list[int]], s: Structure) -> int:
    names = s.sequence_names() * s.directions
    matrices = ("weight_ih", "weight_hh", "weight_hr")
    sizes = [math.prod(shape) for name, shape in zip(names, weights, strict=True) if name in matrices]
    return 2 * rows * sum(sizes)
