"""Which backend and algorithm may serve a call: the candidates in order of preference, each with its refusal."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import _extension
from ...dispatch import Candidate, settings
from . import triton_ops

# Measured in fp32 on AVX2: up to so many rows, or products, the kernel is 1.3 to 3 times as fast as torch's product.
_FEW_ROWS, _SMALL = 48, 2**22
_LITTLE = 2**15


def _cpu(x: Tensor, dropout_p: float) -> str | None:
    if x.device.type != "cpu":
        return f"x is on {x.device}"
    if dropout_p == 1:
        return "dropout_p = 1 drops everything"
    return None if _extension.cpu.loaded else f"CPU kernels are not loaded: {_extension.cpu.error}"


def refuse_cpu_dot(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, dropout_p: float
) -> str | None:
    """Why not the product whose sums run along in_features."""
    if (reason := _cpu(x, dropout_p)) is not None:
        return reason
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"no kernel for {x.dtype}"
    if not weight.is_contiguous():
        return "weight is not contiguous"
    if x.dtype is not torch.float32:
        return "AMX tiles multiply faster" if _extension.cpu_isa() == "amx" else None
    N, K = weight.shape
    if activation is None and not dropout_p and N * K < _LITTLE:
        return "nothing to fuse, and a small product of torch has less overhead"
    if _large(x.numel(), N, K):
        return f"torch's product of {x.shape[:-1].numel()} rows is near the machine's limit"
    return None


def _large(x_numel: int, N: int, K: int) -> bool:
    return x_numel > _FEW_ROWS * K and x_numel * N > _SMALL


def refuse_cpu_torch(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, dropout_p: float
) -> str | None:
    """Why not torch's linear as it is, autograd included."""
    return _plain(activation, dropout_p) or _cpu(x, dropout_p)


def _plain(activation: str | None, dropout_p: float) -> str | None:
    return "there is something to fuse" if activation is not None or dropout_p else None


def quickly_torch(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether a call without activation and dropout is surely `torch`'s, at less cost than a plan.

    True only where nothing but the plain choice is left: arguments that fit, float32, no settings, no autocast.
    """
    if settings.backend is not None or settings.strict or not _extension.cpu.loaded:
        return False
    if x.dtype is not torch.float32 or weight.dtype is not torch.float32 or not (x.is_cpu and weight.is_cpu):
        return False
    if x.dim() < 1 or weight.dim() != 2 or torch.is_autocast_enabled("cpu"):
        return False
    N, K = weight.shape
    if x.shape[-1] != K or not (N * K < _LITTLE or _large(x.numel(), N, K)):
        return False
    return bias is None or (bias.dtype is torch.float32 and bias.is_cpu and bias.shape == (N,))


def refuse_cpu_composed(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, dropout_p: float
) -> str | None:
    """Why not torch's product and one fused pass."""
    return _cpu(x, dropout_p)


def _cuda(x: Tensor, dropout_p: float) -> str | None:
    if x.device.type != "cuda":
        return f"x is on {x.device}"
    if dropout_p == 1:
        return "dropout_p = 1 drops everything"
    return None if _extension.cuda.loaded else f"CUDA kernels are not loaded: {_extension.cuda.error}"


def refuse_cuda_torch(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, dropout_p: float
) -> str | None:
    """Why not torch's linear as it is: cuBLASLt adds the bias in its epilogue."""
    return _plain(activation, dropout_p) or _cuda(x, dropout_p)


def refuse_cuda_composed(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, dropout_p: float
) -> str | None:
    """Why not cuBLASLt's product with the bias in its epilogue, and one fused pass."""
    return _cuda(x, dropout_p)


CANDIDATES = [
    Candidate("cpu", "dot", refuse_cpu_dot),
    Candidate("cpu", "torch", refuse_cpu_torch),
    Candidate("cpu", "composed", refuse_cpu_composed),
    Candidate("cuda", "torch", refuse_cuda_torch),
    Candidate("cuda", "composed", refuse_cuda_composed),
    # torch's product first: nothing on a GPU has shown that the fused one is faster.
    Candidate("triton", "composed", triton_ops.refusal),
    Candidate("triton", "fused", triton_ops.refusal),
]
