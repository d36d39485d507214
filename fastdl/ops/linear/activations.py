"""The activations by name: their codes, what each needs for backward, their derivatives in plain PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# The codes cross the border to the kernels.
ACTIVATIONS = {None: 0, "relu": 1, "gelu": 2, "gelu_tanh": 3, "silu": 4, "tanh": 5, "sigmoid": 6}
NAMES = tuple(ACTIVATIONS)

# The derivative is a function of the output; of the others' input, "pre".
BY_OUTPUT = ("relu", "tanh", "sigmoid")
BY_INPUT = ("gelu", "gelu_tanh", "silu")


def activate(pre: Tensor, activation: str | None) -> Tensor:
    """activation(pre)."""
    if activation is None:
        return pre
    if activation in BY_OUTPUT:
        return getattr(torch, activation)(pre)
    if activation == "silu":
        return F.silu(pre)
    return F.gelu(pre, approximate="tanh" if activation == "gelu_tanh" else "none")


# What overwrites its input no slower than it would write elsewhere: torch's gelu copies.
_IN_PLACE = {"relu": torch.relu_, "tanh": torch.tanh_, "sigmoid": torch.sigmoid_, "silu": torch._C._nn.silu_}


def function(activation: str, fresh: bool) -> Callable[[Tensor], Tensor]:
    """The activation as torch's function; `fresh`: its input is nobody else's, to be overwritten if that is as fast."""
    if fresh and activation in _IN_PLACE:
        return _IN_PLACE[activation]
    if activation in BY_OUTPUT:
        return getattr(torch, activation)
    return lambda pre: activate(pre, activation)


def derivative(saved: Tensor, activation: str) -> Tensor:
    """activation'(pre), from the output for BY_OUTPUT and from pre for BY_INPUT."""
    if activation == "relu":
        # as torch's: a NaN passes its gradient
        return (~(saved <= 0)).to(saved.dtype)
    if activation == "tanh":
        return 1 - saved * saved
    if activation == "sigmoid":
        return saved * (1 - saved)
    if activation == "silu":
        sigmoid = torch.sigmoid(saved)
        return sigmoid * (1 + saved * (1 - sigmoid))
    if activation == "gelu":
        density = torch.exp(-0.5 * saved * saved) * (0.5 * math.sqrt(2 / math.pi))
        return 0.5 * (1 + torch.erf(saved * math.sqrt(0.5))) + saved * density
    inner = math.sqrt(2 / math.pi) * (saved + 0.044715 * saved**3)
    tanh = torch.tanh(inner)
    slope = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * saved * saved)
    return 0.5 * (1 + tanh) + 0.5 * saved * (1 - tanh * tanh) * slope
