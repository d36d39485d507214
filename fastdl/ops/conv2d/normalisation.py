"""A normalisation with running statistics, as the scale and bias that follow a convolution."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter


class Normalisation(NamedTuple):
    """batch_norm(y) = scale y + shift; [C_out] each."""

    running_mean: Tensor
    running_var: Tensor
    weight: Tensor | None
    bias: Tensor | None
    eps: float

    def scale_and_shift(self, conv_bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """Of a convolution without its bias; differentiable."""
        scale = torch.rsqrt(self.running_var + self.eps)
        if self.weight is not None:
            scale = scale * self.weight
        centre = self.running_mean if conv_bias is None else self.running_mean - conv_bias
        if self.bias is None:
            return scale, -(centre * scale)
        return scale, torch.addcmul(self.bias, centre, scale, value=-1)

    def is_plain(self, conv_bias: Tensor | None) -> bool:
        """Whether a kernel for float32 on CPUs may read it, beside the mean, which a plan is chosen by."""
        return all(
            t is None or (type(t) in (Tensor, Parameter) and t.dtype is torch.float32 and t.is_cpu)
            for t in (self.running_var, self.weight, self.bias, conv_bias)
        )
