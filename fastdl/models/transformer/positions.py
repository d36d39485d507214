"""Sinusoidal positional encoding."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sinusoids(length: int, size: int) -> Tensor:
    """[length, size]: sin and cos of position / 10000^(2i / size), interleaved. Source: Vaswani et al. 2017.

    >>> sinusoids(2, 4)
    tensor([[0.0000, 1.0000, 0.0000, 1.0000],
            [0.8415, 0.5403, 0.0100, 0.9999]])
    """
    frequencies = torch.exp(torch.arange(0, size, 2, dtype=torch.float64) * (-math.log(10000.0) / size))
    angles = torch.arange(length, dtype=torch.float64)[:, None] * frequencies
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1).float()
