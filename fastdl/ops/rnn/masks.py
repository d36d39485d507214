"""Random masks, drawn with torch's generator so that every backend sees the same ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def dropout_between_layers(x: Tensor, p: float, batch_first: bool) -> Tensor:
    """`x` with elements dropped; on the CPU those that torch's layer drops, which draws its masks as [T, B]."""
    if not batch_first or not x.is_cpu:
        return F.dropout(x, p, True)
    B, T, columns = x.shape
    return x * F.dropout(x.new_ones(T, B, columns), p, True).transpose(0, 1)


def recurrent_mask(x: Tensor, shape: tuple[int, ...], p: float) -> Tensor | None:
    """0 with probability p, else 1 / (1 - p), in the dtype of x: one for all steps; None where p is 0."""
    if p == 0:
        return None
    kept = _drawn(shape, 1 - p, x.device)
    return kept.to(x.dtype) if p == 1 else kept.to(x.dtype).div_(1 - p)


def zoneout_mask(x: Tensor, shape: tuple[int, ...], p: float) -> Tensor | None:
    """True, keep the old value, with probability p; None where p is 0."""
    return None if p == 0 else _drawn(shape, p, x.device)


def _drawn(shape: tuple[int, ...], p: float, device: torch.device) -> Tensor:
    """True with probability p; the same for every dtype. On a CPU bernoulli_ takes 2.5 times as long as integers."""
    if device.type != "cpu":
        return torch.empty(shape, dtype=torch.bool, device=device).bernoulli_(p)
    return torch.empty(shape, dtype=torch.int32).random_() <= round(p * 2**31) - 1  # of [0, 2^31)
