"""A convolution and what may follow it, in plain PyTorch: the definition."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..conv_relu_maxpool.geometry import Geometry
from .activations import activate


def reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    residual: Tensor | None,
    activation: str | None,
    g: Geometry,
) -> Tensor:
    """activation(scale conv2d(x) + bias + residual): [N, C, H, W] -> [N, C_out, CH, CW]."""
    if scale is None:
        y = F.conv2d(x, weight, bias, g.stride, g.padding, g.dilation, g.groups)
    else:
        y = F.conv2d(x, weight, None, g.stride, g.padding, g.dilation, g.groups) * scale[:, None, None]
        y = y if bias is None else y + bias[:, None, None]
    y = y if residual is None else y + residual
    return activate(y, activation)
