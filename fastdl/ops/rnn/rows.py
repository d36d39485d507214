"""Sums over all rows of a sequence."""

from __future__ import annotations

import torch
from torch import Tensor


def flat(rows: Tensor) -> Tensor:
    """[*rows, width] -> [number of rows, width]."""
    return rows.reshape(-1, rows.shape[-1]) if rows.dim() != 2 else rows


# torch's CPU product adds this many terms one after the other where M and N are small; more lose digits.
_MOST_ROWS = 512


def outer_sum(left: Tensor, right: Tensor) -> Tensor:
    """Sum over rows of left x right: [*rows, M], [*rows, N] -> [M, N]."""
    left, right = flat(left), flat(right)
    if left.device.type != "cpu" or left.dtype is not torch.float32 or torch.compiler.is_compiling():
        return left.t() @ right
    first, *more = zip(left.split(_MOST_ROWS), right.split(_MOST_ROWS), strict=True)
    total = first[0].t() @ first[1]
    for a, b in more:
        total += a.t() @ b  # addmm_ would go on with the same long sum
    return total
