"""Which backend and algorithm may serve a call: the candidates in order of preference, each with its refusal."""

from __future__ import annotations

from torch import Tensor

from ...dispatch import Candidate
from ...transforms import needs_gradient
from ..conv_relu_maxpool import refusals, triton_ops
from ..conv_relu_maxpool.geometry import Geometry


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
    C_out, C, *kernel = weight.shape
    if kernel == [1, 1]:
        if x.shape[0] > 1 and C >= 128:
            return "oneDNN's main loop is as fast for many images of 128 channels or more"
        return "more than 4 C output channels are bound by memory" if C_out > 4 * C else None
    if max(g.stride) > 1 and C_out >= 128 and kernel[0] * kernel[1] <= 9:
        return None
    return "only 1x1, and strides to 128 channels or more, are faster"


def refuse_triton_composed(x: Tensor, weight: Tensor, bias: Tensor | None, g: Geometry) -> str | None:
    """Why not torch's convolution, and what follows it in place."""
    return triton_ops.refusal_composed(x, weight, bias, g)


CANDIDATES = [
    Candidate("cpu", "winograd", refusals.refuse_cpu_winograd),
    Candidate("cpu", "implicit_gemm", refuse_cpu_implicit_gemm),
    Candidate("cpu", "composed", refuse_cpu_composed),
    Candidate("cuda", "composed", refuse_cuda_composed),
    Candidate("triton", "composed", refuse_triton_composed),
]
