"""Torch's products of 16-bit numbers on the CPU: without instructions for them they take a hundred times as long as in
float32, which is what computes them here then.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def _without_instructions() -> frozenset[torch.dtype]:
    """The 16-bit types that oneDNN does not multiply on this machine."""
    if not torch.backends.mkldnn.is_available():
        return frozenset((torch.bfloat16, torch.float16))
    asked = {
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported,
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported,
    }
    return frozenset(dtype for dtype, supported in asked.items() if not supported())


_SLOW = _without_instructions()


def slow_in_torch(t: Tensor) -> bool:
    """Whether products of tensors like `t` are to be taken in float32 and rounded."""
    return t.dtype in _SLOW and t.is_cpu


def through_float32(function: Callable[..., Tensor], *operands: Tensor | None) -> Tensor:
    """A function of the operands in float32, rounded to the dtype of the first."""
    dtype = operands[0].dtype
    with torch.autocast("cpu", enabled=False):  # it would take the operands back to 16 bits
        return function(*(None if t is None else t.float() for t in operands)).to(dtype)


def product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right, in the dtype of left."""
    return through_float32(torch.matmul, left, right) if slow_in_torch(left) else left @ right


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x weight^T + bias, in the dtype of x."""
    return through_float32(F.linear, x, weight, bias) if slow_in_torch(x) else F.linear(x, weight, bias)
