"""Flop formulas for torch.utils.flop_counter: a sublayer counts as its products; what is hidden counts too."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import register_flop_formula

_ops = torch.ops.fastdl


@register_flop_formula([_ops.attention_sublayer, _ops.weighted_attention_sublayer])
def _attention(x_shape, memory_shape, *args, out_shape=None, **kwargs) -> int:
    batch_first = args[8][1]
    B, L = x_shape[:2] if batch_first else (x_shape[1], x_shape[0])
    S = L if memory_shape is None else memory_shape[1 if batch_first else 0]
    return _products(B * L, B * S, B * L * S, x_shape[2])


@register_flop_formula(_ops.packed_attention_sublayer)
def _packed(x_shape, cu_seqlens_shape, *args, out_shape=None, **kwargs) -> int:
    total, sequences = x_shape[1], max(1, cu_seqlens_shape[0] - 1)
    return _products(total, total, total * total // sequences, x_shape[2])


@register_flop_formula(_ops.cached_attention_sublayer)
def _cached(x_shape, keys_shape, values_shape, past, *args, out_shape=None, **kwargs) -> int:
    B, L, E = x_shape
    keys = keys_shape[2] if past < 0 else past + L
    return _products(B * L, 0 if past < 0 else B * L, B * L * keys, E)


@register_flop_formula(_ops.feed_forward_sublayer)
def _feed_forward(x_shape, weight_1_shape, *args, out_shape=None, **kwargs) -> int:
    rows = 1
    for size in x_shape[:-1]:
        rows *= size
    return 4 * rows * weight_1_shape[0] * weight_1_shape[1]


def _products(queries: int, keys: int, pairs: int, E: int) -> int:
    """Projections of queries and outputs, of new keys and values, and the two products of all heads."""
    return 2 * E * (2 * queries * E + 2 * keys * E + 2 * pairs)
