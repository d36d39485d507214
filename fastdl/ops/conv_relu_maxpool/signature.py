"""What the plan of a convolution follows from."""

from __future__ import annotations

from torch import Tensor

from ...dispatch import settings
from ...transforms import eager, needs_gradient
from .. import tf32


def signature(x: Tensor, weight: Tensor, bias: Tensor | None, arguments: tuple) -> tuple | None:
    """What the plan of a call follows from, last whether it is recorded; None where the call must be looked at anew.

    Checking and choosing take 15 us, this and remembering 2.
    """
    if not eager():
        return None
    try:
        on_cpu = x.is_cpu and weight.is_cpu and (bias is None or bias.is_cpu)
        return (
            type(x), x.shape, x.stride(), x.dtype,
            type(weight), weight.shape, weight.stride(), weight.dtype,
            None if bias is None else (type(bias), bias.shape, bias.dtype),
            arguments, settings.automatic or (settings.backend, settings.strict, settings.precision),
            on_cpu or (x.device, weight.device, None if bias is None else bias.device, tf32.allowed("conv")),
            needs_gradient(x, weight, bias),
        )  # fmt: skip
    except (AttributeError, RuntimeError):  # no tensor, or one without such metadata
        return None
