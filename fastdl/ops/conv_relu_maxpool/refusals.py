"""Which backend and algorithm may serve a call: the candidates in order of preference, each with its refusal."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import _extension, dispatch
from ...dispatch import Candidate
from ...transforms import needs_gradient
from .. import products, tf32
from . import triton_ops
from .geometry import Geometry

_SINGLE = (torch.float32, torch.bfloat16, torch.float16)


def refuse_cpu(x: Tensor) -> str | None:
    """Why not a kernel for CPUs."""
    if x.device.type != "cpu":
        return f"x is on {x.device}"
    return None if _extension.cpu.loaded else f"CPU kernels are not loaded: {_extension.cpu.error}"


def refuse_cpu_winograd(x: Tensor, weight: Tensor, bias: Tensor | None, g: Geometry) -> str | None:
    """Why not fused Winograd F(4x4, 3x3) or F(6x6, 3x3)."""
    if (reason := refuse_cpu(x)) is not None:
        return reason
    if dispatch.settings.precision == "strict":
        return "precision 'strict' refuses Winograd's error"
    if x.dtype not in _SINGLE:
        return f"no kernel for {x.dtype}"
    if (*weight.shape[2:], *g.stride, *g.dilation, g.groups) != (3, 3, 1, 1, 1, 1, 1):
        return "only 3x3, stride 1, dilation 1, groups 1"
    if g.pool_size and not _quads(g):
        return "only a 2x2 pool with stride 2, or none"
    if x.dtype is torch.bfloat16 and _extension.cpu_isa() == "amx":
        return "AMX multiplies bfloat16 faster without a transform"
    CH, CW = g.conv_size(x, weight)
    tiles = -(-CH // 4) * -(-CW // 4)
    if 4 * tiles >= CH * CW:
        return f"most of the 4x4 tiles of a {CH}x{CW} convolution would be empty"
    if x.shape[0] * tiles < _least_tiles(weight.shape[0] * weight.shape[1], needs_gradient(x, weight, bias)):
        return f"{x.shape[0] * tiles} tiles are too few to pay for the transformed weight"
    return None


def _least_tiles(channels: int, recorded: bool) -> int:
    """A transformed weight, four times the plain one, is read whole for every call, and for backward made anew."""
    if channels >= 128 * 128:
        return 32
    return 16 if recorded and channels >= 32 * 32 else 0


def _quads(g: Geometry) -> bool:
    return (*g.pool_size, *g.pool_stride, *g.pool_padding, *g.pool_dilation) == (2, 2, 2, 2, 0, 0, 1, 1)


def refuse_cpu_direct(x: Tensor, weight: Tensor, bias: Tensor | None, g: Geometry) -> str | None:
    """Why not the direct convolution."""
    if (reason := refuse_cpu(x) or g.window_refusal()) is not None:
        return reason
    if x.dtype not in _SINGLE:
        return f"no kernel for {x.dtype}"
    if g.groups != 1:
        return "only groups 1"
    if x.shape[1] > 4:
        return f"more than 4 input channels ({x.shape[1]}) are faster composed"
    if max(g.stride) > (2 if g.pool_size else 1):
        return f"stride {g.stride} is faster composed"
    if max(weight.shape[2:]) == 1:
        return "1x1 is faster composed"
    if g.pool_size and (g.pool_size, g.pool_stride) == ((2, 2), (1, 1)):
        return "overlapping 2x2 windows are faster composed"
    return None


def refuse_cpu_planes(x: Tensor, weight: Tensor, g: Geometry) -> str | None:
    """Why not the implicit GEMM of planes, whatever follows it."""
    if (reason := refuse_cpu(x)) is not None:
        return reason
    if x.dtype is not torch.float32:
        return f"no kernel for {x.dtype}"
    if g.groups != 1:
        return "only groups 1"
    if not x.is_contiguous():
        return "other layouts than NCHW are faster composed"
    if (isa := _extension.cpu_isa()) == "baseline":
        return f"measured with AVX2 and AVX-512, not on {isa}"
    taps = weight.shape[2] * weight.shape[3]
    if taps > 1 and products.uses_wide_vectors() and (max(g.stride) == 1 or weight.shape[1] > 32):
        return "oneDNN's loops for AVX-512 are as fast but for 1x1, and strides from 32 channels or fewer"
    if taps > 256:
        return "a running sum is over at most 256 taps"
    CH, CW = g.conv_size(x, weight)
    if CH * CW < 16:
        return f"an image of {CH}x{CW} positions leaves most of the panels empty"
    if taps > 9 and x.shape[0] * weight.numel() * CH * CW >= 2**26:
        return "oneDNN's main loop is as fast for large kernels"
    return None


def refuse_cpu_implicit_gemm(x: Tensor, weight: Tensor, bias: Tensor | None, g: Geometry) -> str | None:
    """Why not the implicit GEMM: of AMX tiles in bfloat16, of planes in float32."""
    if x.dtype is torch.bfloat16:
        return _refuse_tiles(x, weight, bias, g)
    if (reason := refuse_cpu_planes(x, weight, g)) is not None:
        return reason
    CH, CW = g.conv_size(x, weight)
    taps = weight.shape[2] * weight.shape[3]
    if CH * CW < 64 and taps == 1 and (max(g.stride) > 1 or not g.pool_size):
        return f"a 1x1 kernel over {CH}x{CW} positions leaves most of the panels empty"
    elements = x.shape[0] * weight.shape[0] * CH * CW
    if not g.pool_size:
        return _refuse_unpooled(x, weight, g, taps)
    if g.pool_size[0] * g.pool_size[1] > 16:
        return f"windows of {g.pool_size[0]} x {g.pool_size[1]} are faster in torch"
    if elements < 2**17 and needs_gradient(x, weight, bias):
        return f"a backward pass over {elements} elements saves less than it costs"
    return None


def _refuse_tiles(x: Tensor, weight: Tensor, bias: Tensor | None, g: Geometry) -> str | None:
    """Why not the implicit GEMM of AMX tiles, which hold 32 channels of a pixel whether they are there or not."""
    if (reason := refuse_cpu(x) or g.window_refusal()) is not None:
        return reason
    if (isa := _extension.cpu_isa()) != "amx":
        return f"bfloat16 needs AMX, not {isa}"
    if g.groups != 1:
        return "only groups 1"
    C_out, C, KH, KW = weight.shape
    CH, CW = g.conv_size(x, weight)
    elements = x.shape[0] * C_out * CH * CW
    if C < 8 and KH * KW > 9:
        return f"{C} input channels leave most of the tiles empty"
    if g.pool_size and elements < 2**17 and needs_gradient(x, weight, bias):
        return f"a backward pass over {elements} elements saves less than it costs"
    if x.is_contiguous():
        return None
    if C <= 16 and (C_out <= 16 or not g.pool_size):
        return f"{C} channels_last input channels are faster composed"
    if not g.pool_size and KH * KW == 1 and elements >= 2**21:
        return "1x1 without a pool is bound by memory"
    return None


def _refuse_unpooled(x: Tensor, weight: Tensor, g: Geometry, taps: int) -> str | None:
    """Why not the implicit GEMM where torch's ReLU in place is all there is to save."""
    if taps == 1 and g.stride == (1, 1):
        wide = weight.shape[0] > 2 * weight.shape[1]
        return "without a pool more than 2 C output channels are bound by memory" if wide else None
    if taps <= 9 and max(g.stride) > 1 and weight.shape[0] >= 128:
        return None
    return "without a pool only 1x1, and strides to 128 channels or more, are faster"


def refuse_cpu_composed(x: Tensor, weight: Tensor, bias: Tensor | None, g: Geometry) -> str | None:
    """Why not torch's convolution and one fused pass."""
    if (reason := refuse_cpu(x) or g.window_refusal()) is not None:
        return reason
    if not g.pool_size or dispatch.settings.strict or dispatch.settings.backend is not None:
        return None
    if products.slow_in_torch(x):
        return None
    if g.pool_size[0] * g.pool_size[1] > 16:
        return f"windows of {g.pool_size[0]} x {g.pool_size[1]} are faster in torch"
    CH, CW = g.conv_size(x, weight)
    elements = x.shape[0] * weight.shape[0] * CH * CW
    if elements < 2**17 and (needs_gradient(x, weight, bias) or not x.is_contiguous()):
        return f"a pass over {elements} elements saves less than it costs"
    return None


def refuse_cuda(x: Tensor) -> str | None:
    """Why not a kernel in CUDA."""
    if x.device.type != "cuda":
        return f"x is on {x.device}"
    return None if _extension.cuda.loaded else f"CUDA kernels are not loaded: {_extension.cuda.error}"


def refuse_cuda_implicit_gemm(x: Tensor, weight: Tensor, bias: Tensor | None, g: Geometry) -> str | None:
    """Why not the fused implicit GEMM with exact fp32 products."""
    if (reason := refuse_cuda(x)) is not None:
        return reason
    if x.dtype is torch.bfloat16 and torch.cuda.get_device_capability(x.device) < (8, 0):
        return "bfloat16 needs compute capability 8.0"
    if g.groups != 1:
        return "only groups 1"
    if max(weight.shape[2:]) > 15:
        return "a kernel side is over 15"
    CH, CW = g.conv_size(x, weight)
    OH, OW = g.output_size((CH, CW))
    if g.pool_size and not (_quads(g) and 2 * OH <= CH and 2 * OW <= CW):
        return "only a 2x2 pool with stride 2 and whole windows, or none"
    if CH * CW > 2**30 or x.shape[0] * -(-CH * CW // 64) >= 2**31:
        return "too many positions"
    if weight.shape[1] * weight.shape[2] * weight.shape[3] >= 64 * 3 * 3:
        return "cuDNN's main loop is expected to win from 64 channels at 3x3 on"
    return None


def refuse_cuda_tf32(x: Tensor, weight: Tensor, bias: Tensor | None, g: Geometry) -> str | None:
    """Why not the fused implicit GEMM with fp32 products rounded to TF32."""
    if (reason := _tf32(x)) is not None:
        return reason
    if x.is_cuda and torch.cuda.get_device_capability(x.device) < (8, 0):
        return "TF32 needs compute capability 8.0"
    return refuse_cuda_implicit_gemm(x, weight, bias, g)


def refuse_cuda_composed(x: Tensor, weight: Tensor, bias: Tensor | None, g: Geometry) -> str | None:
    """Why not cuDNN's convolution and one fused pass."""
    return refuse_cuda(x) or g.window_refusal()


def _tf32(x: Tensor) -> str | None:
    if x.dtype is not torch.float32:
        return f"TF32 is for float32, x is {x.dtype}"
    if dispatch.settings.precision == "strict":
        return "precision 'strict' refuses TF32's error"
    return None if tf32.allowed("conv") else "torch.backends.cudnn does not allow TF32"


def refuse_triton_tf32(x: Tensor, weight: Tensor, bias: Tensor | None, g: Geometry) -> str | None:
    """Why not Triton's implicit GEMM with fp32 products rounded to TF32."""
    return _tf32(x) or triton_ops.refusal(x, weight, bias, g)


CANDIDATES = [
    Candidate("cpu", "direct", refuse_cpu_direct),
    Candidate("cpu", "winograd", refuse_cpu_winograd),
    Candidate("cpu", "implicit_gemm", refuse_cpu_implicit_gemm),
    Candidate("cpu", "composed", refuse_cpu_composed),
    Candidate("cuda", "implicit_gemm_tf32", refuse_cuda_tf32),
    Candidate("cuda", "implicit_gemm", refuse_cuda_implicit_gemm),
    Candidate("cuda", "composed", refuse_cuda_composed),
    Candidate("triton", "implicit_gemm_tf32", refuse_triton_tf32),
    Candidate("triton", "implicit_gemm", triton_ops.refusal),
    Candidate("triton", "composed", triton_ops.refusal_composed),
]
