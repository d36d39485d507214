"""conv + bias + ReLU + max-pool in plain PyTorch: the definition every backend is held to."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .geometry import Geometry


def reference(x: Tensor, weight: Tensor, bias: Tensor | None, g: Geometry) -> Tensor:
    """max_pool2d(relu(conv2d(x))): [N, C, H, W] -> [N, C_out, OH, OW]; without a pool, relu(conv2d(x))."""
    y = F.relu(F.conv2d(x, weight, bias, g.stride, g.padding, g.dilation, g.groups))
    if not g.pool_size:
        return y
    return F.max_pool2d(y, g.pool_size, g.pool_stride, g.pool_padding, g.pool_dilation, g.ceil_mode)


def reference_with_record(
    x: Tensor, weight: Tensor, bias: Tensor | None, g: Geometry
) -> tuple[Tensor, Tensor]:
    """The reference and its record: one byte per pooled element, the offset of the maximum in its
    window (kh * pool_width + kw), or 255 where the ReLU is closed. Empty without a pool."""
    conv = F.conv2d(x, weight, bias, g.stride, g.padding, g.dilation, g.groups)
    return reference_bias_relu_maxpool(conv, None, g)


def reference_bias_relu_maxpool(conv: Tensor, bias: Tensor | None, g: Geometry) -> tuple[Tensor, Tensor]:
    """Everything after the convolution: relu(max(conv) + bias) and the record."""
    y = F.relu(conv if bias is None else conv + bias[:, None, None])
    if not g.pool_size:
        return y, y.new_empty(0, dtype=torch.uint8)
    output, indices = F.max_pool2d(
        y, g.pool_size, g.pool_stride, g.pool_padding, g.pool_dilation, g.ceil_mode, return_indices=True
    )
    record = offsets_from_indices(indices, y.shape[-1], g)
    return output, record.masked_fill(output <= 0, 255)


def reference_expand(grad_output: Tensor, record: Tensor, conv_size: tuple[int, int], g: Geometry) -> Tensor:
    """grad_conv [N, C_out, CH, CW]: every pooled gradient at the position its record names, overlaps summed."""
    indices = indices_from_record(record, conv_size, g).flatten(2)
    values = grad_output.masked_fill(record == 255, 0).flatten(2)
    grad_conv = grad_output.new_zeros((*grad_output.shape[:2], conv_size[0] * conv_size[1]))
    return grad_conv.scatter_add(2, indices, values).unflatten(2, conv_size)


def offsets_from_indices(indices: Tensor, CW: int, g: Geometry) -> Tensor:
    """max_pool2d's flat int64 indices -> window offsets (uint8)."""
    origin_h, origin_w = _window_origins(indices, g)
    kh = torch.div(
        torch.div(indices, CW, rounding_mode="floor") - origin_h, g.pool_dilation[0], rounding_mode="floor"
    )
    kw = torch.div(indices % CW - origin_w, g.pool_dilation[1], rounding_mode="floor")
    return (kh * g.pool_size[1] + kw).to(torch.uint8)


def indices_from_record(record: Tensor, conv_size: tuple[int, int], g: Geometry) -> Tensor:
    """Window offsets -> max_pool2d's flat int64 indices; a closed window gives its first in-bounds position."""
    origin_h, origin_w = _window_origins(record, g)
    offset = record.long()
    h = origin_h + torch.div(offset, g.pool_size[1], rounding_mode="floor") * g.pool_dilation[0]
    w = origin_w + offset % g.pool_size[1] * g.pool_dilation[1]
    closed = record == 255
    h = torch.where(closed, _first_inside(origin_h, g.pool_dilation[0]), h)
    w = torch.where(closed, _first_inside(origin_w, g.pool_dilation[1]), w)
    return h * conv_size[1] + w


def _window_origins(like: Tensor, g: Geometry) -> tuple[Tensor, Tensor]:
    OH, OW = like.shape[-2:]
    origin_h = torch.arange(OH, device=like.device) * g.pool_stride[0] - g.pool_padding[0]
    origin_w = torch.arange(OW, device=like.device) * g.pool_stride[1] - g.pool_padding[1]
    return origin_h[:, None], origin_w


def _first_inside(origin: Tensor, dilation: int) -> Tensor:
    # the smallest origin + k * dilation that is not negative
    return torch.where(origin < 0, origin % dilation, origin)
