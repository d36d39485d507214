"""A timestep as a vector."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LONGEST = 10_000.0


def sinusoids(t: Tensor, size: int) -> Tensor:
    """[B] timesteps, whole or not -> [B, size]: cosines, then sines, of t / LONGEST^(2 i / size).

    Source: Vaswani et al. 2017, section 3.5.
    """
    frequency = torch.exp(torch.arange(size // 2, device=t.device) * (-2 * math.log(LONGEST) / size))
    angle = t.float()[:, None] * frequency
    return torch.cat((angle.cos(), angle.sin()), 1)
