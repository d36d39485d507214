"""How an image lies in memory."""

from __future__ import annotations

import torch
from torch import Tensor


def is_channels_last(t: Tensor) -> bool:
    """Whether a 4-dimensional tensor is channels_last and nothing else: what is both counts as contiguous."""
    return t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous()
