"""The activations that may follow a convolution, by name: their codes, and what they are in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..linear import activations as linear

# Those of fastdl.ops.linear, and two of convolutional networks. The codes cross the border to the kernels.
ACTIVATIONS = {**linear.ACTIVATIONS, "relu6": 7, "hardswish": 8}
NAMES = tuple(ACTIVATIONS)
_BY_CODE = {code: name for name, code in ACTIVATIONS.items()}

_OWN = {"relu6": F.relu6, "hardswish": F.hardswish}
_IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu_,
    "relu6": lambda y: F.hardtanh_(y, 0.0, 6.0),
    "silu": torch._C._nn.silu_,
    "hardswish": torch._C._nn.hardswish_,
    "tanh": torch.tanh_,
    "sigmoid": torch.sigmoid_,
}


def named(code: int) -> str | None:
    """The name of a code. Raises ValueError for another number."""
    if code not in _BY_CODE:
        raise ValueError(f"activation must be from 0 to {len(NAMES) - 1}, got {code}")
    return _BY_CODE[code]


def check(activation: object) -> None:
    """ValueError unless it is the name of an activation, or None."""
    if activation not in NAMES:
        names = ", ".join(map(repr, NAMES[1:]))
        raise ValueError(f"activation must be None or one of {names}, got {activation!r}")


def activate(y: Tensor, activation: str | None) -> Tensor:
    """activation(y)."""
    own = _OWN.get(activation)
    return linear.activate(y, activation) if own is None else own(y)


def activate_(y: Tensor, activation: str | None) -> Tensor:
    """activation(y), in place where torch can."""
    in_place = _IN_PLACE.get(activation)
    return activate(y, activation) if in_place is None else in_place(y)
