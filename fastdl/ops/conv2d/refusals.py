"""Which backend and algorithm may serve a call: the candidates in order of preference, each with its refusal."""

from __future__ import annotations

from torch import Tensor

from ...dispatch import Candidate
from ..conv_relu_maxpool import refusals
from ..conv_relu_maxpool.geometry import Geometry


def refuse_cpu_composed(x: Tensor, weight: Tensor, bias: Tensor | None, g: Geometry) -> str | None:
    """Why not torch's convolution, and what follows it in place."""
    return refusals.refuse_cpu(x)


def refuse_cuda_composed(x: Tensor, weight: Tensor, bias: Tensor | None, g: Geometry) -> str | None:
    """Why not cuDNN's convolution, and what follows it in place."""
    return refusals.refuse_cuda(x)


CANDIDATES = [
    Candidate("cpu", "winograd", refusals.refuse_cpu_winograd),
    Candidate("cpu", "composed", refuse_cpu_composed),
    Candidate("cuda", "composed", refuse_cuda_composed),
]
