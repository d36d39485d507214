"""Which backend and algorithm may serve a call: the candidates in order of preference, each with its refusal."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import Parameter

from ...dispatch import Candidate
from ...transforms import needs_gradient
from .. import products
from ..conv_relu_maxpool import refusals, triton_ops
from ..conv_relu_maxpool.geometry import Geometry
from ..memory_format import is_channels_last
from . import packed_weights


def refuse_cpu_composed(x: Tensor, weight: Tensor, bias: Tensor | None, g: Geometry) -> str | None:
    """Why not torch's convolution, and what follows it in place."""
    return refusals.refuse_cpu(x)


def refuse_cuda_composed(x: Tensor, weight: Tensor, bias: Tensor | None, g: Geometry) -> str | None:
    """Why not cuDNN's convolution, and what follows it in place."""
    return refusals.refuse_cuda(x)


def refuse_cpu_implicit_gemm(x: Tensor, weight: Tensor, bias: Tensor | None, g: Geometry) -> str | None:
    """Why not the implicit GEMM of planes, which has no backward. Measured with what follows it in its place."""
    if needs_gradient(x, weight, bias):
        return "it has no backward"
    if (reason := refusals.refuse_cpu_planes(x, weight, g)) is not None:
        return reason
    N, (C_out, C, *kernel) = x.shape[0], weight.shape
    CH, CW = g.conv_size(x, weight)
    taps, positions = kernel[0] * kernel[1], N * CH * CW
    if taps == 1:
        if C >= 512 and C * C_out >= 2**17 and (N > 2 or positions >= 512):
            return "oneDNN's main loop is as fast for many positions of 512 channels or more"
        return None
    if (N <= 2 and positions <= 256) or (N == 1 and max(g.stride) > 1):
        return None
    few = C <= 4 and products.uses_wide_vectors()  # oneDNN's loops for AVX-512 are over channels
    if max(g.stride) > 1 and (C_out >= 128 or few) and taps <= 9:
        return None
    return "only 1x1, strides, and small images are faster"


def refuse_cpu_depthwise(x: Tensor, weight: Tensor, bias: Tensor | None, g: Geometry) -> str | None:
    """Why not the kernel for channels that are convolved by themselves, which has no backward."""
    if (reason := refusals.refuse_cpu(x)) is not None:
        return reason
    if g.groups != x.shape[1] or g.groups == 1:
        return "only as many groups as channels"
    if needs_gradient(x, weight, bias):
        return "it has no backward"
    if x.dtype is torch.float64:
        return f"no kernel for {x.dtype}"
    if is_channels_last(x):
        return "oneDNN's vectors of channels are as fast in channels_last"
    if max(weight.shape[2:]) > 7 or max(g.stride) > 2 or max(g.dilation) > 1:
        return "only kernels up to 7x7, strides up to 2 and dense ones are faster"
    N, (CH, CW) = x.shape[0], g.conv_size(x, weight)
    if N > 2 and weight.shape[2] not in (3, 5, 7):
        return "no kernel made for its height: oneDNN's is as fast for a batch"
    in_place = x.dtype is torch.float32 and CH >= 7 and g.stride[0] == g.stride[1]
    few = CH * CW < 196 or x.numel() < 2**22
    if (N > 1 and CH * CW < 32) or (N > 2 and few and not in_place):
        return "oneDNN's vectors of channels are faster for batches of small images"
    return None


def refuse_cpu_onednn(x: Tensor, weight: Tensor, bias: Tensor | None, g: Geometry) -> str | None:
    """Why not oneDNN's convolution with a weight that is kept in its layout."""
    if (reason := refusals.refuse_cpu(x)) is not None:
        return reason
    if not packed_weights.AVAILABLE:
        return "this torch has no operators for weights in oneDNN's layout"
    if needs_gradient(x, weight, bias):
        return "a weight that is trained is not kept"
    if torch.compiler.is_compiling():
        return "what is kept cannot be compiled"
    if type(weight) is not Parameter:
        return "only Parameters are kept"
    if x.dtype is torch.float64 or products.slow_in_torch(x):
        return f"oneDNN does not convolve {x.dtype} here"
    if not _is_dense(weight):
        return "the weight has gaps"
    if packed_weights.window_in_padding(weight, g):
        return "a window may lie in the padding alone"
    if _by_tiles(x, weight, g):
        return "a product by tiles is faster"
    CH, CW = g.conv_size(x, weight)
    positions = x.shape[0] * CH * CW
    if positions * weight.numel() < 2**20:
        return "asking for what is kept takes as long as is saved"
    if is_channels_last(x):
        return None
    # NCHW is brought into NHWC and back: small images pay for it with a large weight.
    C_out, C, KH, KW = weight.shape
    if KH * KW == 1:
        pays = positions < 64 and C_out * C >= 2**19
    else:
        pays = positions <= 256 and weight.numel() >= 64 * (C_out + C)
    return (
        None if pays else "NCHW is brought into NHWC and back, which a weight of this size does not pay for"
    )


def refuse_cpu_product(x: Tensor, weight: Tensor, bias: Tensor | None, g: Geometry) -> str | None:
    """Why not a product of two matrices: oneDNN and torch's own loops take an image of one position badly, and AMX
    multiplies pixels of channels_last faster than oneDNN convolves them."""
    if (reason := refusals.refuse_cpu(x)) is not None:
        return reason
    if weight.shape[2:] != (1, 1) or g.groups != 1 or any(g.padding):
        return "only 1x1 kernels without padding"
    if x.shape[2:] == (1, 1) or _by_tiles(x, weight, g):
        return None
    return "only images of one position, and what AMX tiles multiply in channels_last, are faster"


def _by_tiles(x: Tensor, weight: Tensor, g: Geometry) -> bool:
    """Whether a 1x1 convolution that nobody trains is a product that is faster by AMX tiles."""
    if x.dtype is not torch.float32 or weight.shape[2:] != (1, 1) or not is_channels_last(x):
        return False
    (C_out, C), pixels = weight.shape[:2], x.shape[0] * x.shape[2] * x.shape[3]
    plain = g.groups == 1 and not any(g.padding) and max(g.stride) == 1
    if not plain or C_out * C < 2**16 or not products.by_tiles(pixels, C_out, C):
        return False
    return not (torch.compiler.is_compiling() or needs_gradient(x, weight, None))


def _is_dense(weight: Tensor) -> bool:
    return weight.is_contiguous() or is_channels_last(weight)


def refuse_triton_composed(x: Tensor, weight: Tensor, bias: Tensor | None, g: Geometry) -> str | None:
    """Why not torch's convolution, and what follows it in place."""
    return triton_ops.refusal_composed(x, weight, bias, g)


CANDIDATES = [
    Candidate("cpu", "winograd", refusals.refuse_cpu_winograd),
    Candidate("cpu", "implicit_gemm", refuse_cpu_implicit_gemm),
    Candidate("cpu", "depthwise", refuse_cpu_depthwise),
    Candidate("cpu", "onednn", refuse_cpu_onednn),
    Candidate("cpu", "product", refuse_cpu_product),
    Candidate("cpu", "composed", refuse_cpu_composed),
    Candidate("cuda", "composed", refuse_cuda_composed),
    Candidate("triton", "composed", refuse_triton_composed),
]
