"""Which attention weights dropout keeps: the same on every backend, in forward and backward, for one seed."""

from __future__ import annotations

import torch
from torch import Tensor

from ..philox import dropout_threshold, philox


def kept(seed: Tensor, first: int, shape: torch.Size, p: float) -> Tensor:
    """[B, H, L_q, L_k] bool. Query i and key j of head h and sequence b take word j % 4 of Philox at the counter
    (j // 4, i, (first + b) * H + h, 0)."""
    B, H, L_q, L_k = shape
    device = seed.device
    heads = torch.arange(B * H, device=device).view(B, H, 1, 1) + first * H
    rows = torch.arange(L_q, device=device).view(L_q, 1)
    quads = torch.arange(-(-L_k // 4), device=device)
    words = torch.stack(philox((quads, rows, heads, 0), seed), -1).flatten(-2)[..., :L_k]
    return words >= dropout_threshold(p)
