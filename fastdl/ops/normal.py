"""Normal deviates from Philox words, in plain PyTorch: the twin of csrc/common/normal.h. Box and Muller 1958.

Element i of a tensor, counted in memory order, is deviate i % 4 of the counter (i // 4, offset).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .philox import philox

_WORD = 0xFFFFFFFF


def box_muller(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Two float32 deviates from two 32-bit words: r cos(angle) and r sin(angle), |r| < 6.77.

    The radius comes from u = (first + 1/2) / 2^32 rounded to float32, in [2^-33, 1]: never log(0).
    """
    u = first.to(torch.float32) * 2.0**-32 + 2.0**-33
    radius = (-2 * u.double().log()).sqrt()
    angle = second.double() * (2 * math.pi * 2.0**-32)
    return (radius * angle.cos()).float(), (radius * angle.sin()).float()


def normals(count: int, seed: Tensor) -> Tensor:
    """`count` float32 deviates, the first ones of (seed, offset) = `seed`, int64 [2]."""
    block = torch.arange((count + 3) // 4, device=seed.device)
    offset = seed[1]
    counter = (block & _WORD, block >> 32, offset & _WORD, (offset >> 32) & _WORD)
    a, b, c, d = philox(counter, seed[0])
    return torch.stack((*box_muller(a, b), *box_muller(c, d)), 1).flatten()[:count]
