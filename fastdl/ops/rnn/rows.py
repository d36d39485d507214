"""Sums over all rows of a sequence."""

from __future__ import annotations

import torch
from torch import Tensor

from ..products import product


def flat(rows: Tensor) -> Tensor:
    """[*rows, width] -> [number of rows, width]."""
    return rows.reshape(-1, rows.shape[-1]) if rows.dim() != 2 else rows


# torch's CPU product of so few elements adds all its terms one after the other: many lose digits.
_UNBLOCKED, _MOST_ROWS = 4096, 512


def outer_sum(left: Tensor, right: Tensor) -> Tensor:
    """Sum over rows of left x right: [*rows, M], [*rows, N] -> [M, N]."""
    left, right = flat(left), flat(right)
    rows, elements = left.shape[0], left.shape[1] * right.shape[1]
    plain = left.device.type != "cpu" or left.dtype is not torch.float32 or torch.compiler.is_compiling()
    if plain or elements >= _UNBLOCKED or rows <= _MOST_ROWS:
        return product(left.t(), right)
    even = rows - rows % _MOST_ROWS
    a, b = (t[:even].unflatten(0, (-1, _MOST_ROWS)) for t in (left, right))
    total = torch.bmm(a.transpose(1, 2), b).sum(0)
    return total + left[even:].t() @ right[even:] if even < rows else total
