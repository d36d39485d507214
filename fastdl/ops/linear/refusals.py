"""Which backend and algorithm may serve a call: the candidates in order of preference, each with its refusal."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import _extension
from ...dispatch import Candidate

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
    rows = x.shape[:-1].numel()
    if activation is None and not dropout_p and N * K < _LITTLE:
        return "nothing to fuse, and a small product of torch has less overhead"
    if rows > _FEW_ROWS and rows * N * K > _SMALL:
        return f"torch's product of {rows} rows is near the machine's limit"
    return None


def refuse_cpu_composed(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, dropout_p: float
) -> str | None:
    """Why not torch's product and one fused pass."""
    return _cpu(x, dropout_p)


CANDIDATES = [
    Candidate("cpu", "dot", refuse_cpu_dot),
    Candidate("cpu", "composed", refuse_cpu_composed),
]
