"""Which backend and algorithm may serve a call: the candidates in order of preference, each with its refusal."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import _extension, dispatch
from ...dispatch import Candidate
from ..products import uses_wide_vectors
from . import triton_ops
from .call import Call, length
from .reference import Context

_SINGLE = (torch.float32, torch.bfloat16, torch.float16)
# A block of keys is packed for all rows that see it: fewer rows do not pay for it.
FEWEST_ROWS = 15
# Below so many products of two numbers, the operator's own call costs more than torch's whole attention; of one
# query a head in float32, where heads share their keys, which torch reads once for each, and where not.
FEWEST_PRODUCTS, FEWEST_SHARED, FEWEST_ALONE = 2**16, 2**18, 2**19
# What the CUDA kernels hold of a head in shared memory, and the rows they count.
LARGEST_D, LARGEST_HOPPER_D = 256, 128
MOST_ROWS = 1 << 29
# Queries of a head that a GPU still answers by splitting the keys: more fill it by themselves.
MOST_DECODED = 16
# Keys of a head that one block holds, and the bytes of one of them; the head size whose gradients fit its registers,
# and the query rows a head of k that it passes alone.
MOST_KEYS, MOST_ROW_BYTES = 128, 256
LARGEST_SHORT_D, MOST_SHORT_ROWS = 64, 512


def _sdpa(q: Tensor, k: Tensor, context: Context, call: Call, return_lse: bool) -> str | None:
    """Why torch's scaled_dot_product_attention does not compute this call."""
    if return_lse:
        return "torch's attention does not return lse"
    if context.cu_seqlens_q is not None:
        return "torch's attention takes no cu_seqlens"
    if call.softcap or context.sink is not None or context.alibi_slopes is not None:
        return "torch's attention has no softcap, sink or ALiBi"
    if call.window != (-1, -1):
        return "torch's attention has no window"
    if call.dropout_p and q.device.type != "cuda":
        return "torch's attention with dropout takes its unfused path on a CPU"
    if call.dropout_p and context.seed is not None:
        return "torch's attention draws its dropout from no given seed"
    if call.causal and (context.mask is not None or context.bias is not None):
        return "torch's attention takes a mask or causality, not both"
    if call.causal == "bottom_right" and q.shape[2] != k.shape[2]:
        return "torch's attention aligns causality at the top left"
    if context.mask is not None and context.bias is not None:
        return "torch's attention takes a mask or a bias, not both"
    if context.mask is not None and q.device.type == "cpu":
        return "torch's attention gives NaN for NaN in a hidden key"
    return None


def _refuse_cpu(q: Tensor) -> str | None:
    if q.device.type != "cpu":
        return f"q is on {q.device}"
    if not _extension.cpu.loaded:
        return f"CPU kernels are not loaded: {_extension.cpu.error}"
    return None if q.dtype in _SINGLE else f"no kernel for {q.dtype}"


def _queries(q: Tensor, call: Call) -> int:
    """Of a head of a sequence."""
    return call.max_q if q.dim() == 3 else length(q)


def _rows(q: Tensor, k: Tensor, call: Call) -> int:
    """Query rows that share a head of k."""
    return q.shape[1] // max(k.shape[1], 1) * _queries(q, call)


def _refuse_more_than_decoded(q: Tensor, k: Tensor, v: Tensor, context: Context, call: Call) -> str | None:
    """Why not a kernel that splits the keys over a GPU."""
    if _queries(q, call) > MOST_DECODED:
        return f"more than {MOST_DECODED} queries fill the device without splitting the keys"
    if _needs_gradient(q, k, v, context.bias, context.sink):
        return "backward needs scores summed in the order in which it computes them again"
    return None


def refuse_cpu_decode(
    q: Tensor, k: Tensor, v: Tensor, context: Context, call: Call, return_lse: bool
) -> str | None:
    """Why not the kernel for few query rows, which reads k and v as they lie."""
    if (reason := _refuse_cpu(q)) is not None:
        return reason
    if _rows(q, k, call) >= FEWEST_ROWS:
        return f"{FEWEST_ROWS} query rows a head of k or more pay for packing the keys"
    if _needs_gradient(q, k, v, context.bias, context.sink):
        return "backward needs scores summed in the order in which it computes them again"
    if _sdpa(q, k, context, call, return_lse) is not None:
        return None
    products = q.numel() * k.shape[2]
    fewest = FEWEST_PRODUCTS
    if q.shape[2] == 1 and q.dtype is torch.float32 and not _asked_for():
        fewest = FEWEST_SHARED if _rows(q, k, call) > 1 and context.bias is None else FEWEST_ALONE
    return f"fewer than {fewest} products are faster by torch" if products < fewest else None


def _asked_for() -> bool:
    """Whether "slower" is no reason: a backend is forced, falling back is an error, or a compiler traces."""
    settings = dispatch.settings
    return settings.strict or settings.backend is not None or torch.compiler.is_compiling()


def refuse_cpu_flash(
    q: Tensor, k: Tensor, v: Tensor, context: Context, call: Call, return_lse: bool
) -> str | None:
    """Why not the kernels that compute block by block of keys."""
    if (reason := _refuse_cpu(q)) is not None:
        return reason
    if _refuses_recomputed(q, k, v, context):
        return "precision 'strict' refuses the error of gradients by recomputed scores"
    if _sdpa(q, k, context, call, return_lse) is None and _rows(q, k, call) < FEWEST_ROWS:
        return f"fewer than {FEWEST_ROWS} query rows a head of k are faster by torch"
    if _asked_for():
        return None
    if _sdpa(q, k, context, call, return_lse) is not None or _needs_gradient(context.bias):
        return None
    if q.dtype is not torch.float32 or q.shape[-2] < FEWEST_ROWS:
        return None
    return _small(q, k, call.causal, _needs_gradient(q, k, v))


# Heads that leave no thread idle and hide what a call costs by itself: of a forward alone, of one that autograd
# records, and with few keys, whose packing takes as long as it saves.
_MANY_HEADS, _MANY_RECORDED, _MANY_WITH_FEW_KEYS, _FEW_KEYS = 8, 16, 32, 64
# Products up to which torch is faster: of some heads with rows for a whole tile, and of fewer; without causality its
# products of few heads run near the limit of AVX2.
_SOME_HEADS, _TILE_ROWS, _FEWEST_OF_SOME = 4, 48, 2**18
_FEWEST_OF_FEW, _FEWEST_NEAR_LIMIT = 2**22, 2**24
# Query rows of two heads and more from which AVX-512 is faster, whatever else: on a Xeon, 1.1 to 1.5 times; with few
# keys it is slower below.
_WIDE_ROWS, _WIDE_RECORDED = 384, 512


def _small(q: Tensor, k: Tensor, causal: bool | str, recorded: bool) -> str | None:
    """Why torch's attention is faster in float32 on the CPU, for 15 query rows and more."""
    (B, H, L_q, _), L_k = q.shape, k.shape[2]
    heads, products = B * H, q.numel() * L_k
    near_limit = _extension.cpu_isa() in ("baseline", "avx2")
    if uses_wide_vectors():
        if heads > 1 and heads * L_q >= (_WIDE_RECORDED if recorded else _WIDE_ROWS):
            return None
        if L_k <= _FEW_KEYS:
            return f"{heads * L_q} query rows with {L_k} keys are faster by torch"
    many = _MANY_WITH_FEW_KEYS if L_k <= _FEW_KEYS else _MANY_HEADS
    if heads >= (_MANY_RECORDED if recorded else many):
        return None
    fewest = _FEWEST_OF_FEW
    if not recorded:
        if L_k <= _FEW_KEYS and near_limit:
            return f"{heads} heads with {L_k} keys are faster by torch"
        if L_k > _FEW_KEYS and causal:
            return None
        if L_k > _FEW_KEYS and heads >= _SOME_HEADS and L_q >= _TILE_ROWS:
            fewest = _FEWEST_OF_SOME
        elif near_limit:
            fewest = _FEWEST_NEAR_LIMIT
    return f"{products} products of {heads} heads are faster by torch" if products <= fewest else None


def _refuses_recomputed(q: Tensor, k: Tensor, v: Tensor, context: Context) -> bool:
    """Whether the settings ask for smaller errors than gradients by recomputed scores have in float32."""
    strict = dispatch.settings.precision == "strict" and q.dtype is torch.float32
    return strict and _needs_gradient(q, k, v, context.bias, context.sink)


def _needs_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def refuse_cpu_sdpa(
    q: Tensor, k: Tensor, v: Tensor, context: Context, call: Call, return_lse: bool
) -> str | None:
    """Why not torch's scaled_dot_product_attention."""
    return f"q is on {q.device}" if q.device.type != "cpu" else _sdpa(q, k, context, call, return_lse)


def refuse_cuda_sdpa(
    q: Tensor, k: Tensor, v: Tensor, context: Context, call: Call, return_lse: bool
) -> str | None:
    """Why not torch's scaled_dot_product_attention and its own choice of cuDNN, flash or memory-efficient kernels."""
    return f"q is on {q.device}" if q.device.type != "cuda" else _sdpa(q, k, context, call, return_lse)


def refuse_cuda_decode(
    q: Tensor, k: Tensor, v: Tensor, context: Context, call: Call, return_lse: bool
) -> str | None:
    """Why not the CUDA kernels for few query rows, whose keys are split over blocks."""
    reason = _refuse_cuda(q, k, v, context, call, return_lse)
    return _refuse_more_than_decoded(q, k, v, context, call) if reason is None else reason


def refuse_cuda_short(
    q: Tensor, k: Tensor, v: Tensor, context: Context, call: Call, return_lse: bool
) -> str | None:
    """Why not the CUDA kernels that hold all keys of a head: the softmax takes one pass, backward one launch."""
    if (reason := refuse_cuda_flash(q, k, v, context, call, return_lse)) is not None:
        return reason
    if context.cu_seqlens_q is not None:
        return "packed sequences may be longer than is said"
    if k.shape[2] > MOST_KEYS:
        return f"more than {MOST_KEYS} keys do not fit a block"
    if max(q.shape[-1], v.shape[-1]) * q.element_size() > MOST_ROW_BYTES:
        return f"a head is larger than {MOST_ROW_BYTES} bytes"
    if torch.cuda.get_device_capability(q.device) < (8, 0):
        return "the keys need the shared memory of compute capability 8.0"
    if not _needs_gradient(q, k, v, context.bias, context.sink):
        return None
    if max(q.shape[-1], v.shape[-1]) > LARGEST_SHORT_D:
        return f"gradients of a head larger than {LARGEST_SHORT_D} do not fit the registers of a block"
    if _rows(q, k, call) > MOST_SHORT_ROWS:
        return f"more than {MOST_SHORT_ROWS} query rows a head of k would wait for one block"
    return None


def refuse_cuda_flash(
    q: Tensor, k: Tensor, v: Tensor, context: Context, call: Call, return_lse: bool
) -> str | None:
    """Why not the CUDA kernels that compute block by block of keys."""
    reason = _refuse_cuda(q, k, v, context, call, return_lse)
    if reason is None and _refuses_recomputed(q, k, v, context):
        return "precision 'strict' refuses the error of gradients by recomputed scores"
    return reason


def refuse_cuda_hopper(
    q: Tensor, k: Tensor, v: Tensor, context: Context, call: Call, return_lse: bool
) -> str | None:
    """Why not the CUDA kernel for compute capability 9.0, whose products and copies are asynchronous."""
    if (reason := _cuda_limits(q, k, v)) is not None:
        return reason
    if torch.cuda.get_device_capability(q.device) != (9, 0):
        return "needs compute capability 9.0"
    if q.dtype is torch.float32:
        return "its products are of float16 and bfloat16"
    if any(D % 8 or not 0 < D <= LARGEST_HOPPER_D for D in (q.shape[-1], v.shape[-1])):
        return f"a head is not a multiple of 8 up to {LARGEST_HOPPER_D}"
    if context.cu_seqlens_q is not None:
        return "its copies do not end where a packed sequence ends"
    if call.dropout_p:
        return "it has no dropout"
    if _needs_gradient(q, k, v, context.bias, context.sink):
        return "backward needs scores summed in the order in which it computes them again"
    return "it was never timed on a GPU: only a plan that names it gets it (tests/gpu)"


def _refuse_cuda(
    q: Tensor, k: Tensor, v: Tensor, context: Context, call: Call, return_lse: bool
) -> str | None:
    if (reason := _cuda_limits(q, k, v)) is not None:
        return reason
    if _sdpa(q, k, context, call, return_lse) is None:
        if call.dropout_p:
            return "torch's attention serves this call, with dropout in half the time on an H200"
        return "torch's attention serves this call, and these kernels were never timed against it"
    return None


def _cuda_limits(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    if q.device.type != "cuda":
        return f"q is on {q.device}"
    if not _extension.cuda.loaded:
        return f"CUDA kernels are not loaded: {_extension.cuda.error}"
    if q.dtype not in _SINGLE:
        return f"no kernel for {q.dtype}"
    D, bfloat16 = max(q.shape[-1], v.shape[-1]), q.dtype is torch.bfloat16
    if D > LARGEST_D:
        return f"a head is larger than {LARGEST_D}"
    if (bfloat16 or D > 128) and torch.cuda.get_device_capability(q.device) < (8, 0):
        return f"{'bfloat16' if bfloat16 else 'a head larger than 128'} needs compute capability 8.0"
    return f"{MOST_ROWS} rows or more" if max(length(q), length(k)) >= MOST_ROWS else None


def refuse_triton_decode(
    q: Tensor, k: Tensor, v: Tensor, context: Context, call: Call, return_lse: bool
) -> str | None:
    """Why not the Triton kernels for few query rows, whose keys are split over programs."""
    reason = triton_ops.refusal(q, k, v, context, call, return_lse)
    return _refuse_more_than_decoded(q, k, v, context, call) if reason is None else reason


CANDIDATES = [
    Candidate("cpu", "decode", refuse_cpu_decode),
    Candidate("cpu", "flash", refuse_cpu_flash),
    Candidate("cpu", "sdpa", refuse_cpu_sdpa),
    Candidate("cuda", "decode", refuse_cuda_decode),
    Candidate("cuda", "short", refuse_cuda_short),
    Candidate("cuda", "hopper", refuse_cuda_hopper),
    Candidate("cuda", "flash", refuse_cuda_flash),
    Candidate("cuda", "sdpa", refuse_cuda_sdpa),
    Candidate("triton", "decode", refuse_triton_decode),
    Candidate("triton", "flash", triton_ops.refusal),
]
