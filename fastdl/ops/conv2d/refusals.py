"""Which backend and algorithm may serve a call: the candidates in order of preference, each with its refusal."""

from __future__ import annotations

from torch import Tensor

from ...dispatch import Candidate
from ...transforms import needs_gradient
from ..conv_relu_maxpool import refusals
from ..conv_relu_maxpool.geometry import Geometry


def refuse_cpu_composed(x: Tensor, weight: Tensor, bias: Tensor | None, g: Geometry) -> str | None:
    """Why not torch's convolution, and what follows it in place."""
    return refusals.refuse_cpu(x)


def refuse_cuda_composed(x: Tensor, weight: Tensor, bias: Tensor | None, g: Geometry) -> str | None:
    """Why not cuDNN's convolution, and what follows it in place."""
    return refusals.refuse_cuda(x)


def refuse_cpu_implicit_gemm(x: Tensor, weight: Tensor, bias: Tensor | None, g: Geometry) -> str | None:
    """Why not the implicit GEMM of planes, which has no backward."""
    if needs_gradient(x, weight, bias):
        return "it has no backward"
    return refusals.refuse_cpu_implicit_gemm(x, weight, bias, g)


CANDIDATES = [
    Candidate("cpu", "winograd", refusals.refuse_cpu_winograd),
    Candidate("cpu", "implicit_gemm", refuse_cpu_implicit_gemm),
    Candidate("cpu", "composed", refuse_cpu_composed),
    Candidate("cuda", "composed", refuse_cuda_composed),
]
