"""The one call that takes the place of a convolution and what follows it inside a traced forward."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import conv_relu_maxpool


def conv_relu(conv: nn.Conv2d, x: Tensor, **pool: object) -> Tensor:
    """relu(conv(x)), pooled if `pool` says how."""
    return conv_relu_maxpool(
        x,
        conv.weight,
        conv.bias,
        stride=conv.stride,
        padding=conv.padding,
        dilation=conv.dilation,
        groups=conv.groups,
        **pool,
    )


def conv_batch_norm_relu(conv: nn.Conv2d, norm: nn.BatchNorm2d, x: Tensor, **pool: object) -> Tensor:
    """relu(norm(conv(x))), pooled if `pool` says how.

    With running statistics the normalisation is linear and goes into a weight made for this call, where that is
    faster; the parameters are only read. With batch statistics it needs the whole convolution first.
    """
    if norm.training or norm.running_mean is None or not _folding_is_faster(conv, x, **pool):
        return relu_max_pool(norm(conv(x)), **pool)
    weight, bias = folded(conv, norm)
    return conv_relu_maxpool(
        x,
        weight,
        bias,
        stride=conv.stride,
        padding=conv.padding,
        dilation=conv.dilation,
        groups=conv.groups,
        **pool,
    )


def _folding_is_faster(conv: nn.Conv2d, x: Tensor, **pool: object) -> bool:
    """Whether a convolution with a weight made for the call is faster than torch's and the normalisation after it.

    Measured in float32 on a CPU with AVX2: where torch's convolution would follow, with no pool to fuse, it was not
    (0.7x to 1x), nor with fewer than about a tenth as many positions as the weight of a channel has elements.
    """
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return True
    own = conv.kernel_size == (3, 3) and conv.stride == conv.dilation == (1, 1) and conv.groups == 1
    channel = x.shape[-3] * conv.kernel_size[0] * conv.kernel_size[1] // conv.groups
    positions = x.numel() // (x.shape[-3] * conv.stride[0] * conv.stride[1])
    return (own or bool(pool)) and 10 * positions >= channel


def folded(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution that equals norm(conv(x)) with running statistics."""
    scale = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight
    centre = norm.running_mean if conv.bias is None else norm.running_mean - conv.bias
    bias = -centre * scale if norm.bias is None else norm.bias - centre * scale
    return (conv.weight * scale[:, None, None, None]).to(conv.weight.dtype), bias.to(conv.weight.dtype)


def relu_max_pool(
    x: Tensor,
    pool_size: object = None,
    pool_stride: object = None,
    pool_padding: object = 0,
    pool_dilation: object = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """relu(x), pooled if there is a pool_size."""
    x = F.relu(x)
    if pool_size is None:
        return x
    return F.max_pool2d(x, pool_size, pool_stride, pool_padding, pool_dilation, ceil_mode, return_indices)
