"""Which way is fastest for a size, on the CPU, in fp32 unless said: measured limits and overheads.

Asked by the refusals and by the quick choice alike. Where MKL has AVX-512 the limits are those that
a Xeon with AMX has shown.
"""

from __future__ import annotations

from ..._extension import cpu_isa
from .. import products

# Up to so many rows, or products, the kernel is expected to multiply faster than torch.
_FEW_ROWS, _SMALL = 48, 2**22
# The same in bfloat16 where torch multiplies by AVX512-BF16 as the kernel does: on Zen 4 the kernel took 1/1.4 of its
# time for 16 rows, 1/1.06 for 64, and for 256 rows 1.04, with short sums (K 64 to 384) up to 1.3 times as long.
_FEW_BF16_ROWS = 96
_ANY = 2**62
# For how many elements fusing saves more than an autograd.Function costs (50 us and more). Torch's exact gelu starts
# slowly and is fast; its tanh is slow.
_RECORDED = {"gelu": (0, 2**14), "gelu_tanh": (2**13, _ANY), "tanh": (2**17, _ANY), "silu": (2**20, _ANY)}
# On a Xeon with AVX-512 these took torch 18 and 16 cycles a vector, us 26 (by another formula) and 21; on Zen 4 28 and
# 150, us 22 and 24; in bfloat16 gelu takes torch 25 there, us 29.
_FAST_IN_TORCH = ("gelu", "tanh")

LIMIT = "torch's product of so many rows is near the machine's limit"
TILES = "AMX tiles multiply faster"
LITTLE = "a small product of torch has less overhead"
RECORDED = "an autograd function costs more than fusing saves at this size"
WIDE = "MKL multiplies so few rows, or so little, as fast with AVX-512"
IN_PLACE = "torch's activation in place is as fast"
FAST = "torch's activation is faster with AVX-512"


def fastest(rows: int, N: int, K: int, activation: str | None, recorded: bool) -> str:
    """The algorithm for a call without dropout."""
    if dot_loses(rows, N, K, activation, recorded) is None:
        return "dot"
    if products_lose(rows, N, K, recorded) is None:
        return "gemm"
    return "composed" if pass_loses(rows, N, K, activation, recorded) is None else "torch"


def dot_loses(rows: int, N: int, K: int, activation: str | None, recorded: bool) -> str | None:
    """Why not the kernel that multiplies and activates; None if it is the fastest."""
    if recorded and _function_loses(rows, N, K, activation):
        return RECORDED
    if rows == 1 and N * K < 2**16 and activation not in ("gelu", "gelu_tanh"):
        return LITTLE
    if activation is None and N * K < 2**15:
        return LITTLE
    if product_near_limit(rows, N, K):
        return LIMIT
    if products.wide_mkl():
        return None if _beats_wide_mkl(rows, N, K, activation) else WIDE
    if products.wider_than_mkl() or _multiplies_faster(rows, N, K):
        return None
    # What is left to torch's product is an operator of its own after it.
    if activation is None or activation == "relu" or not (rows <= 128 or rows * N * K <= 2**18):
        return LIMIT
    return None


def fastest_bf16(rows: int, N: int, K: int, activation: str | None, recorded: bool) -> str:
    """The same in bfloat16 where the CPU multiplies it."""
    if bf16_function_loses(rows * N, activation, recorded) is None and bf16_dot_loses(rows, N, K) is None:
        return "dot"
    lost = activation is None or bf16_pass_loses(rows * N, activation, recorded) is not None
    return "torch" if lost else "composed"


def bf16_dot_loses(rows: int, N: int, K: int) -> str | None:
    """Why not the kernel that multiplies and activates in bfloat16, whether recorded or not."""
    if cpu_isa() == "amx":
        return TILES
    near = cpu_isa() == "avx512bf16" and product_near_limit(rows, N, K, _FEW_BF16_ROWS)
    return LIMIT if near else None


def bf16_function_loses(elements: int, activation: str | None, recorded: bool) -> str | None:
    """Why not any way of ours that is recorded, in bfloat16 where the CPU multiplies it, for so many outputs."""
    if not recorded or activation == "gelu_tanh" or (activation == "gelu" and elements < 2**16):
        return None
    return RECORDED if activation in (None, "relu") or elements < 2**18 else None


def bf16_pass_loses(elements: int, activation: str | None, recorded: bool) -> str | None:
    """Why not torch's product and one pass, in bfloat16 where the CPU multiplies it."""
    if not recorded and activation in ("relu", "gelu"):
        return IN_PLACE if activation == "relu" else FAST
    return bf16_function_loses(elements, activation, recorded)


def products_lose(rows: int, N: int, K: int, recorded: bool) -> str | None:
    """Why not products of ours, forward and backward, each where it beats torch's."""
    if not products.weight_is_faster(rows, N, K):
        return LITTLE if products.mkl_on_amd() else LIMIT
    if products.wide_mkl() and not products.by_tiles(rows, N, K):
        little = not products.malloc_never_keeps(N * K)
    else:
        little = rows * N * K < 2**24
    return LITTLE if recorded and little else None


def pass_loses(rows: int, N: int, K: int, activation: str | None, recorded: bool) -> str | None:
    """Why not torch's product and one pass over its result; None if that is faster than torch's activation."""
    if activation is None:
        return IN_PLACE
    if recorded:
        return RECORDED if _function_loses(rows, N, K, activation) else None
    if activation == "relu":
        return IN_PLACE
    if products.uses_wide_vectors() and not products.malloc_never_keeps(rows * N):
        if activation in _FAST_IN_TORCH and products.wide_mkl():
            return FAST
        if activation != "gelu_tanh" and rows * N < 2**16:
            return IN_PLACE
    return IN_PLACE if rows * N < 2**12 and activation not in ("gelu", "gelu_tanh") else None


def product_near_limit(rows: int, N: int, K: int, few: int = _FEW_ROWS) -> bool:
    """Whether torch's product is expected to be the faster one on every machine, for more than `few` rows."""
    return rows > few and rows * N * K > _SMALL


def _beats_wide_mkl(rows: int, N: int, K: int, activation: str | None) -> bool:
    """Whether the kernel beats MKL's product with AVX-512, which takes 0.6 to 1 of its time for two and three rows,
    and for few products; for 4 to 16 rows of large weights it takes 1.5 to 2.2. Torch's tanh gelu is slow anyway.
    """
    if activation == "gelu_tanh":
        return True
    if rows < 4:
        return rows == 1 and activation is not None
    return rows <= _FEW_ROWS and rows * N * K >= 2**20


def _multiplies_faster(rows: int, N: int, K: int) -> bool:
    """Whether the kernel's product beats torch's where both use AVX2, or vectors that are no faster."""
    if rows <= 16:
        return K >= 64
    if rows <= 32:
        return K >= 128 and N * K >= 2**15
    return rows <= 64 and K >= 256 and N * K >= 2**15


def _function_loses(rows: int, N: int, K: int, activation: str | None) -> bool:
    """Whether torch's own functions, recorded one by one, are faster than one function that is recorded."""
    if products.wide_mkl():
        # backward is torch's products, but for a gradient of the weight that malloc never keeps: 1.2 to 1.4
        pays = activation == "gelu_tanh" and rows * N >= _RECORDED[activation][0]
        return not (pays or products.malloc_never_keeps(N * K))
    least, most = _RECORDED.get(activation, (_ANY, _ANY))
    if least <= rows * N <= most or (rows <= 16 and N * K >= 2**20):
        return False
    return not products.wider_than_mkl() or max(rows, K) * N < 2**18
