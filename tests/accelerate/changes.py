"""What is changed in a model after it was accelerated, or before."""

import copy
from collections.abc import Callable

from torch import nn

import fastdl


def changed(
    model: nn.Module, change: Callable[[nn.Module], object], before: bool
) -> tuple[nn.Module, nn.Module]:
    """(accelerated, as it was), both with the change, which `before` makes ahead of accelerate()."""
    if before:
        change(model)
    plain = copy.deepcopy(model)
    fastdl.accelerate(model)
    for m in () if before else (model, plain):
        change(m)
    return model, plain
