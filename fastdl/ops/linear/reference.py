"""linear + activation + dropout in plain PyTorch: the definition every backend is held to."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..philox import dropout_threshold, philox
from .activations import activate


def reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None = None,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
) -> Tensor:
    """dropout(activation(x weight^T + bias)): [..., in_features] -> [..., out_features]."""
    return dropped(activate(F.linear(x, weight, bias), activation), seed, dropout_p)


def dropped(y: Tensor, seed: Tensor | None, dropout_p: float) -> Tensor:
    """y / (1 - p) where the mask keeps an element, 0 (NaN or not) where it drops it."""
    if not dropout_p:
        return y
    scaled = y * (1 / (1 - dropout_p)) if dropout_p < 1 else y
    return torch.where(kept(y.shape, seed, dropout_p), scaled, 0)


def kept(shape: torch.Size, seed: Tensor, dropout_p: float) -> Tensor:
    """The mask: element i of the output, counted row by row, is decided by word i % 4 of Philox at counter i // 4."""
    count = 1
    for size in shape:
        count = count * size
    groups = torch.arange((count + 3) // 4, device=seed.device)
    words = torch.stack(philox((groups & 0xFFFFFFFF, groups >> 32, 0, 0), seed), 1).flatten()[:count]
    return (words >= dropout_threshold(dropout_p)).view(shape)
