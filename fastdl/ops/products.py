"""Products of matrices that a kernel leaves to others: torch's, but where torch is known to be slow.

On CPUs without instructions for 16-bit products torch takes them a hundred times as long as in float32, which is
what computes them here then. And MKL, whose float32 products torch takes, has code for AVX2 alone on AMD: for
layers that are not narrow linear's own product takes its place there, elsewhere for some numbers of rows, and for
results so large that the system hands out their memory anew each time, which ours asks for in huge pages. With AMX
ours multiplies each number as the sum of three of bfloat16, faster than fp32 and with less error.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .._extension import cpu_halves_vectors, cpu_is_amd, cpu_isa


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


# Where our kernels have no fused multiply-add, MKL's use more of the CPU.
_MKL_ON_AMD = torch.backends.mkl.is_available() and cpu_is_amd() and cpu_isa() != "baseline"
# Products of two numbers each. Below, calling takes as long as what is saved.
LEAST_PRODUCTS = 2**20


def mkl_on_amd() -> bool:
    """Whether float32 products of torch run MKL's code for AVX2, which for products that are not narrow is slower."""
    return _MKL_ON_AMD


def uses_wide_vectors() -> bool:
    """Whether our kernels use AVX-512."""
    return cpu_isa() in ("avx512", "avx512bf16", "amx")


def wide_mkl() -> bool:
    """Whether torch's products use AVX-512 as ours do."""
    return uses_wide_vectors() and not mkl_on_amd()


def wider_than_mkl() -> bool:
    """Whether our kernels use vectors that MKL does not: on Zen 5 it needs up to three times as long, on Zen 4, which
    executes 512 bits in two halves, no longer than we do.
    """
    return uses_wide_vectors() and mkl_on_amd() and not cpu_halves_vectors()


def large_enough(M: int, N: int, K: int) -> bool:
    """Whether our product of [M, K] and [K, N] is worth packing both, where MKL leaves part of the CPU unused."""
    least_columns = 16 if wider_than_mkl() else 128
    return M >= 16 and least_columns <= N and M * N * K >= LEAST_PRODUCTS


def by_tiles(M: int, N: int, K: int) -> bool:
    """Whether our product of [M, K] and [K, N] by AMX tiles of bfloat16 beats MKL's, which packs less.

    On a Xeon it took 1 / 1.45 of the time for M = N = K = 1024, 1 / 1.6 for M = N = 2048, K = 512; for 512 1 / 1.3. But
    tiles lose more than vectors where somebody else uses them on the other thread of a core: then 1.25, 1.3 and 1.5.
    """
    return M >= 256 and N >= 256 and K >= 64 and M * N >= 2**20 and cpu_isa() == "amx"


def weight_is_faster(M: int, N: int, K: int) -> bool:
    """Whether our product of [M, K] and a weight [N, K] beats MKL's.

    On a Xeon with AVX-512 ours took 0.79 to 0.92 of its time for 64 rows, 1.3 for 64 outputs, and as long for 96 rows.
    Up to 48 rows linear has a kernel that is faster still.
    """
    if mkl_on_amd():
        return large_enough(M, N, K)
    if by_tiles(M, N, K):
        return True
    return uses_wide_vectors() and 48 < M <= 64 and N >= 256 and N * K >= 2**18


_FRESH_BYTES = 2**25
_MOST_DEPTH = 256  # 512 x 18432 results took 1/2.1 of MKL's time with 16, 1/1.7 with 64, 1/1.2 with 256


def malloc_never_keeps(elements: int) -> bool:
    """Whether glibc maps memory anew for so many float32: a result of torch's takes a page fault for each 4 KB."""
    return 4 * elements > _FRESH_BYTES


def page_faults_count(M: int, N: int, K: int) -> bool:
    """Whether MKL's product of [M, K] and [K, N] takes longer than ours for what the memory of its result costs."""
    return uses_wide_vectors() and min(M, N) >= 16 and 0 < K <= _MOST_DEPTH and malloc_never_keeps(M * N)


def _takes(t: Tensor) -> bool:
    """Whether our products take tensors like `t`, and a call is theirs to choose."""
    return t.dtype is torch.float32 and t.is_cpu and not torch.compiler.is_compiling()


def _faster_than_mkl(left: Tensor, right: Tensor) -> bool:
    """Whether a product of two matrices is one of those that MKL takes long for."""
    if not _takes(left):
        return False
    sizes = left.shape[0], right.shape[1], left.shape[1]
    return large_enough(*sizes) if _MKL_ON_AMD else by_tiles(*sizes) or page_faults_count(*sizes)


def product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right, in the dtype of left."""
    if slow_in_torch(left):
        return through_float32(product, left, right)
    if _faster_than_mkl(left, right):
        return torch.ops.fastdl.linear_product.default(left, right, None)
    return left @ right


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x weight^T + bias, in the dtype of x."""
    if slow_in_torch(x):
        return through_float32(linear, x, weight, bias)
    if x.dim() > 1 and _takes(x) and weight_is_faster(x.shape[:-1].numel(), *weight.shape):
        output = torch.ops.fastdl.linear_product.default(x.flatten(0, -2), weight.t(), bias)
        return output.view(*x.shape[:-1], weight.shape[0])
    return F.linear(x, weight, bias)
