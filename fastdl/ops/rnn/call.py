"""What the refusals see of a call: everything but its tensors."""

from __future__ import annotations

from typing import NamedTuple

import torch

from .checks import Sizes
from .structure import Structure


class Call(NamedTuple):
    """What is asked for, the same for every layer of a stack; sizes are those of the first layer."""

    s: Structure
    sizes: Sizes
    num_layers: int
    dtype: torch.dtype
    device: torch.device
    one_step: bool  # a cell
    packed: bool
    lengths: bool
    reset: bool
    recurrent_mask: bool
    zoneout: tuple[float, float]
    zoneout_masks: bool  # else the expectation
    dropout: float  # between layers, 0 unless training
    gradient: bool  # something requires grad
    checkpoint: bool
    compiling: bool
