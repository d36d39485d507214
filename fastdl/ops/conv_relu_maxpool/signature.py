"""What the plan of a convolution follows from."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import dispatch
from ...transforms import needs_gradient, obstacle
from .. import tf32


def signature(x: Tensor, weight: Tensor, bias: Tensor | None, arguments: tuple) -> tuple | None:
    """What the plan of a call follows from; None where the call must be looked at anew.

    Checking and choosing take 15 us, this and remembering 3.
    """
    if torch._C._is_any_autocast_enabled() or obstacle() is not None:
        return None
    settings = dispatch.settings
    try:
        return (
            type(x), x.shape, x.stride(), x.dtype, x.device,
            type(weight), weight.shape, weight.stride(), weight.dtype, weight.device,
            None if bias is None else (type(bias), bias.shape, bias.dtype, bias.device),
            arguments, settings.backend, settings.strict, settings.precision,
            x.is_cuda and tf32.allowed("conv"), needs_gradient(x, weight, bias),
        )  # fmt: skip
    except (AttributeError, RuntimeError):  # no tensor, or one without such metadata
        return None
