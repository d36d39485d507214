"""Which backend and algorithm may serve a call: the candidates in order of preference, each with its refusal."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import _extension
from ...dispatch import Candidate, settings
from ...transforms import needs_gradient
from .. import products
from . import sizes, triton_ops

# Elements of an output on a GPU below which the host's time for a pass of ours exceeds what it saves: on an H200
# training 64 x 512 (K 18432) was 0.4 to 0.6 times as fast, 8192 x 4096 as fast in less memory; none between was timed.
FEWEST_FUSED = 2**22


def refuse_cpu(x: Tensor, dropout_p: float) -> str | None:
    """Why not any CPU kernel of this family."""
    if x.device.type != "cpu":
        return f"x is on {x.device}"
    if dropout_p == 1:
        return "dropout_p = 1 drops everything"
    return None if _extension.cpu.loaded else f"CPU kernels are not loaded: {_extension.cpu.error}"


def refuse_cpu_dot(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, dropout_p: float
) -> str | None:
    """Why not the product whose sums run along in_features."""
    if (reason := refuse_cpu(x, dropout_p)) is not None:
        return reason
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"no kernel for {x.dtype}"
    if not weight.is_contiguous():
        return "weight is not contiguous"
    rows, N, K, _, recorded = _size(x, weight, bias, activation)
    if x.dtype is torch.bfloat16:
        if not (dropout_p or kernel_asked_for() or products.slow_in_torch(x)):
            reason = sizes.bf16_function_loses(rows * N, activation, recorded)
        return reason or sizes.bf16_dot_loses(rows, N, K)
    if x.dtype is torch.float16:
        return sizes.TILES if _extension.cpu_isa() == "amx" else None
    if dropout_p or kernel_asked_for():
        return sizes.LIMIT if sizes.product_near_limit(rows, N, K) else None
    return sizes.dot_loses(rows, N, K, activation, recorded)


def _rows(x: Tensor) -> int:
    return x.shape[:-1].numel()


def _size(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None
) -> tuple[int, int, int, str | None, bool]:
    """What the fastest way follows from."""
    return (_rows(x), *weight.shape, activation, needs_gradient(x, weight, bias))


def kernel_asked_for() -> bool:
    """Whether "slower" is no reason: a backend is forced, or falling back is an error."""
    return settings.strict or settings.backend is not None


def refuse_cpu_gemm(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, dropout_p: float
) -> str | None:
    """Why not our own products, each where it beats torch's, and one fused pass."""
    if (reason := refuse_cpu(x, dropout_p)) is not None:
        return reason
    if x.dtype is not torch.float32:
        return "only float32 has a kernel"
    if torch.compiler.is_compiling():
        return "a compiler chooses among torch's products"
    return sizes.products_lose(_rows(x), *weight.shape, needs_gradient(x, weight, bias))


def refuse_cpu_composed(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, dropout_p: float
) -> str | None:
    """Why not torch's product and one fused pass."""
    if (reason := refuse_cpu(x, dropout_p)) is not None:
        return reason
    if dropout_p:
        return None
    if activation is None:
        return "there is nothing to fuse"
    if kernel_asked_for():
        return None
    if x.dtype is torch.float32:
        return sizes.pass_loses(*_size(x, weight, bias, activation))
    if x.dtype is torch.bfloat16 and not products.slow_in_torch(x):
        rows, N, _, _, recorded = _size(x, weight, bias, activation)
        return sizes.bf16_pass_loses(rows * N, activation, recorded)
    return None


def refuse_cpu_torch(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, dropout_p: float
) -> str | None:
    """Why not torch's linear and its activation, autograd included."""
    return "there is dropout to fuse" if dropout_p else refuse_cpu(x, dropout_p)


def _cuda(x: Tensor, dropout_p: float) -> str | None:
    if x.device.type != "cuda":
        return f"x is on {x.device}"
    if dropout_p == 1:
        return "dropout_p = 1 drops everything"
    return None if _extension.cuda.loaded else f"CUDA kernels are not loaded: {_extension.cuda.error}"


def refuse_cuda_torch(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, dropout_p: float
) -> str | None:
    """Why not torch's linear and its activation: cuBLASLt adds the bias in its epilogue."""
    if (reason := _cuda(x, dropout_p)) is not None:
        return reason
    if dropout_p:
        return "there is dropout to fuse"
    if activation is None:
        return None
    if kernel_asked_for() or torch.compiler.is_compiling():
        return "there is an activation to fuse"
    elements = _rows(x) * weight.shape[0]
    return f"a pass over {elements} elements is worth fusing" if elements >= FEWEST_FUSED else None


def refuse_cuda_composed(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, dropout_p: float
) -> str | None:
    """Why not cuBLASLt's product with the bias in its epilogue, and one fused pass."""
    return _cuda(x, dropout_p)


CANDIDATES = [
    Candidate("cpu", "dot", refuse_cpu_dot),
    Candidate("cpu", "gemm", refuse_cpu_gemm),
    Candidate("cpu", "composed", refuse_cpu_composed),
    Candidate("cpu", "torch", refuse_cpu_torch),
    Candidate("cuda", "torch", refuse_cuda_torch),
    Candidate("cuda", "composed", refuse_cuda_composed),
    # torch's product first: nothing on a GPU has shown that the fused one is faster.
    Candidate("triton", "composed", triton_ops.refusal),
    Candidate("triton", "fused", triton_ops.refusal),
]
