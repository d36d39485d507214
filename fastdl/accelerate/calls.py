"""The one call that takes the place of a convolution and what follows it inside a traced forward."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import conv2d, conv_relu_maxpool
from ..ops.conv2d import Normalisation, conv2d_batch_norm
from ..ops.conv2d.activations import activate, activate_
from ..transforms import needs_gradient, obstacle
from .quick_calls import quickly, remember

_FEW = 4  # input channels, from which the direct convolution is faster than Winograd


def conv_relu(conv: nn.Conv2d, x: Tensor, **pool: object) -> Tensor:
    """relu(conv(x)), pooled if `pool` says how."""
    if not pool and not _is_direct(conv) and _is_single(x) and not needs_gradient(x, conv.weight, conv.bias):
        return conv2d(x, conv.weight, conv.bias, **_geometry(conv), activation="relu")
    return conv_relu_maxpool(x, conv.weight, conv.bias, **_geometry(conv), **pool)


def conv_batch_norm_relu(conv: nn.Conv2d, norm: nn.BatchNorm2d, x: Tensor, **pool: object) -> Tensor:
    """relu(norm(conv(x))), pooled if `pool` says how.

    With running statistics the normalisation is linear and goes into the kernel, or into a weight made for this
    call, where that is faster; the parameters are only read. With batch statistics it needs the whole convolution
    first.
    """
    if not pool:
        y = quickly(conv, norm, x, None, "relu")
        if y is not None:
            return y
        if not _is_direct(conv) and _norm_fits(conv, norm, x):
            return _normalised(conv, norm, x, activation="relu")
    if _has_batch_statistics(norm) or not _folding_is_faster(conv, x, **pool):
        y = norm(_convolution(conv, x))
        return relu_max_pool(y, **pool) if pool else _activated(y, "relu")
    weight, bias = folded(conv, norm)
    return conv_relu_maxpool(x, weight, bias, **_geometry(conv), **pool)


def conv_activation(conv: nn.Conv2d, x: Tensor, activation: str) -> Tensor:
    """activation(conv(x))."""
    # For one position, a squeezed image, a call of the op takes as long as the layers do.
    if x.numel() > conv.in_channels and _is_single(x) and not needs_gradient(x, conv.weight, conv.bias):
        return conv2d(x, conv.weight, conv.bias, **_geometry(conv), activation=activation)
    return _activated(_convolution(conv, x), activation)


def conv_batch_norm_activation(
    conv: nn.Conv2d, norm: nn.BatchNorm2d, x: Tensor, activation: str, included: bool = False
) -> Tensor:
    """activation(norm(conv(x))); `included`: `norm` is a module that ends in the activation."""
    y = quickly(conv, norm, x, None, activation)
    if y is not None:
        return y
    if _norm_fits(conv, norm, x):
        return _normalised(conv, norm, x, activation=activation)
    y = norm(_convolution(conv, x))
    return y if included else _activated(y, activation)


def conv_batch_norm(conv: nn.Conv2d, norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """norm(conv(x))."""
    y = quickly(conv, norm, x, None, None)
    if y is not None:
        return y
    return _normalised(conv, norm, x) if _norm_fits(conv, norm, x) else norm(_convolution(conv, x))


def conv_batch_norm_add(
    conv: nn.Conv2d, norm: nn.BatchNorm2d, x: Tensor, residual: Tensor, activation: str | None, **how: bool
) -> Tensor:
    """activation(norm(conv(x)) + residual); `how` is add's."""
    y = quickly(conv, norm, x, residual, activation)
    if y is not None:
        return y
    if _norm_fits(conv, norm, x) and _residual_fits(conv, x, residual):
        return _normalised(conv, norm, x, residual=residual, activation=activation)
    y = add(norm(_convolution(conv, x)), residual, **how)
    return _activated(y, activation)


def conv_add(conv: nn.Conv2d, x: Tensor, residual: Tensor, activation: str | None, **how: bool) -> Tensor:
    """activation(conv(x) + residual); `how` is add's."""
    recorded = needs_gradient(x, conv.weight, conv.bias)
    if _is_single(x) and (is_winograd(conv) or not recorded) and _residual_fits(conv, x, residual):
        return conv2d(x, conv.weight, conv.bias, **_geometry(conv), residual=residual, activation=activation)
    y = add(_convolution(conv, x), residual, **how)
    return _activated(y, activation)


def add(y: Tensor, residual: Tensor, in_place: bool = False, swapped: bool = False) -> Tensor:
    """y + residual, or residual + y, or y += residual; `y` is memory that nobody else reads."""
    if in_place:
        y += residual
        return y
    if isinstance(residual, Tensor) and obstacle(y, residual) is None and _is_alike(y, residual):
        return y.add_(residual)
    return residual + y if swapped else y + residual


def is_winograd(conv: nn.Conv2d) -> bool:
    """Whether the op has a kernel with a backward for the convolution alone, on CPUs."""
    return conv.kernel_size == (3, 3) and conv.stride == conv.dilation == (1, 1) and conv.groups == 1


def is_depthwise(conv: nn.Conv2d) -> bool:
    """Whether every channel is convolved by itself, for which the op has a kernel on CPUs, without a backward."""
    return conv.groups == conv.in_channels > 1


def has_kernel(conv: nn.Conv2d) -> bool:
    """Whether the op has a kernel of its own for the convolution alone, on CPUs."""
    return is_winograd(conv) or is_depthwise(conv)


def is_grouped(conv: nn.Conv2d) -> bool:
    """Whether it has groups that no kernel is made for."""
    return conv.groups > 1 and not is_depthwise(conv)


def _is_direct(conv: nn.Conv2d) -> bool:
    return conv.in_channels <= _FEW and conv.stride == (1, 1)


def _geometry(conv: nn.Conv2d) -> dict[str, object]:
    return dict(stride=conv.stride, padding=conv.padding, dilation=conv.dilation, groups=conv.groups)


def _convolution(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """conv(x), by the op's kernel where there is one."""
    kernel = has_kernel(conv) and (is_winograd(conv) or x.is_contiguous())
    if kernel and x.device.type == "cpu" and obstacle(x, conv.weight) is None:
        return conv2d(x, conv.weight, conv.bias, **_geometry(conv))
    return conv(x)


def _activated(y: Tensor, activation: str | None) -> Tensor:
    """activation(y) of memory that nobody else reads; autograd keeps what most activations are applied to."""
    in_place = obstacle(y) is None and (activation == "relu" or not needs_gradient(y, y, None))
    return activate_(y, activation) if in_place else activate(y, activation)


def _normalised(conv: nn.Conv2d, norm: nn.BatchNorm2d, x: Tensor, **more: object) -> Tensor:
    """norm(conv(x)) with running statistics, and what follows, by the op: nothing as large as the weight is made."""
    y = conv2d_batch_norm(x, conv.weight, conv.bias, _normalisation(norm), **_geometry(conv), **more)
    remember(conv, norm, x)
    return y


def _normalisation(norm: nn.BatchNorm2d) -> Normalisation:
    return Normalisation(norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.eps)


def _norm_fits(conv: nn.Conv2d, norm: nn.BatchNorm2d, x: Tensor) -> bool:
    """Whether the op computes norm(conv(x)), and faster than torch does. What is asked first costs least."""
    if norm.training or not _is_single(x) or not _one_call_is_faster(conv, x):
        return False
    weight, norm_weight, variance = conv.weight, norm.weight, norm.running_var
    if variance is None or not all(
        t is None or t.dtype is torch.float32 for t in (variance, norm_weight, weight)
    ):
        return False
    # For the backward pass a folded weight is made.
    if needs_gradient(x, weight, norm_weight):
        return is_winograd(conv) and _folding_is_faster(conv, x)
    return True


def _one_call_is_faster(conv: nn.Conv2d, x: Tensor) -> bool:
    """Torch's two calls are as fast for less than 0.3 ms in NHWC, or with groups."""
    if not is_grouped(conv) and x.is_contiguous():
        return True
    positions = x.numel() // (conv.in_channels * math.prod(_pair(conv.stride)))
    macs_each = conv.out_channels * conv.in_channels // conv.groups * math.prod(conv.kernel_size)
    return positions * macs_each >= 2**24


def _is_single(x: Tensor) -> bool:
    """Whether the op computes exactly on `x` what torch does: others are rounded at other places."""
    return (
        x.dtype is torch.float32
        and x.device.type == "cpu"
        and x.dim() == 4
        and not torch.is_autocast_enabled("cpu")
        and obstacle(x) is None
    )


def _residual_fits(conv: nn.Conv2d, x: Tensor, residual: Tensor) -> bool:
    """Whether a residual is as the output of the op: nothing of it is broadcast or converted."""
    if not isinstance(residual, Tensor) or obstacle(residual) is not None:
        return False
    if residual.dtype is not x.dtype or residual.device != x.device:
        return False
    layout = torch.contiguous_format if x.is_contiguous() else torch.channels_last
    shape = (x.shape[0], conv.weight.shape[0], *_output_size(conv, x))
    return residual.shape == shape and residual.is_contiguous(memory_format=layout)


def _output_size(conv: nn.Conv2d, x: Tensor) -> tuple[int, ...]:
    if conv.padding == "same":
        return tuple(x.shape[2:])
    padding, dilation, stride = map(_pair, (conv.padding, conv.dilation, conv.stride))
    sizes = zip(x.shape[2:], padding, dilation, conv.kernel_size, stride, strict=True)
    return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, p, d, k, s in sizes)


def _pair(value: int | str | Sequence[int]) -> tuple[int, ...]:
    """An attribute for both directions, which may have been set to one number since the layer was made."""
    if isinstance(value, (tuple, list)):
        return (*value, *value) if len(value) == 1 else tuple(value)
    return (0, 0) if value == "valid" else (value, value)


def _is_alike(y: Tensor, residual: Tensor) -> bool:
    return (residual.dtype, residual.device, residual.shape, residual.stride()) == (
        y.dtype, y.device, y.shape, y.stride(),
    )  # fmt: skip


def _has_batch_statistics(norm: nn.BatchNorm2d) -> bool:
    return norm.training or norm.running_mean is None


def _folding_is_faster(conv: nn.Conv2d, x: Tensor, **pool: object) -> bool:
    """Whether a convolution with a weight made for the call is faster than torch's and the normalisation after it.

    Measured in float32 on a CPU with AVX2: where torch's convolution would follow, with no pool to fuse, it was not
    (0.7x to 1x), nor with fewer than about a tenth as many positions as the weight of a channel has elements.
    """
    if obstacle(x) is not None:
        return False  # nothing would be fused, and a comparison would bind the sizes that an exporter leaves open
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return True
    channel = x.shape[-3] * conv.kernel_size[0] * conv.kernel_size[1] // conv.groups
    down, right = _pair(conv.stride)
    positions = x.numel() // (x.shape[-3] * down * right)
    return (is_winograd(conv) or bool(pool)) and 10 * positions >= channel


def folded(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution that equals norm(conv(x)) with running statistics."""
    scale, shift = _normalisation(norm).scale_and_shift(conv.bias)
    return (conv.weight * scale[:, None, None, None]).to(conv.weight.dtype), shift.to(conv.weight.dtype)


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
