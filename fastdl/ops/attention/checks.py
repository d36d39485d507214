"""Kinds and shapes of an attention call, checked once."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .call import CAUSAL, Call
from .reference import Context


def check_kinds(**tensors: Tensor | None) -> None:
    """TypeError unless each is a Tensor (q, k, v) or a Tensor or None (the others)."""
    for name, t in tensors.items():
        if not (isinstance(t, Tensor) or (t is None and name not in ("q", "k", "v"))):
            raise TypeError(f"{name} must be a Tensor, got {type(t).__name__}")


def check_seed(seed: Tensor | None) -> None:
    """TypeError or ValueError unless None or [1] int64."""
    if seed is None:
        return
    if seed.dtype != torch.int64:
        raise TypeError(f"seed must be int64, got {seed.dtype}")
    if seed.shape != (1,):
        raise ValueError(f"seed must have shape [1], got {list(seed.shape)}")


def check_tensors(q: Tensor, k: Tensor, v: Tensor, context: Context, enable_gqa: bool) -> None:
    """Raise TypeError or ValueError, with expected and got."""
    for name, t in (("q", q), ("k", k), ("v", v)):
        if not t.is_floating_point():
            raise TypeError(f"{name} must be floating point, got {t.dtype}")
        if t.dtype != q.dtype:
            raise TypeError(f"{name} must have the dtype of q, {q.dtype}, got {t.dtype}")
    for name, t in (("k", k), ("v", v), *context._asdict().items()):
        if t is not None and t.device != q.device:
            raise TypeError(f"{name} must be on the device of q, {q.device}, got {t.device}")
    packed = context.cu_seqlens_q is not None or context.cu_seqlens_k is not None
    rank, layout = (3, "[total, H, D]") if packed else (4, "[B, H, L, D]")
    for name, t in (("q", q), ("k", k), ("v", v)):
        if t.dim() != rank:
            raise ValueError(f"{name} must have shape {layout}, got {list(t.shape)}")
    if q.shape[-1] != k.shape[-1]:
        raise ValueError(f"q and k must have one D, got {q.shape[-1]} and {k.shape[-1]}")
    same = k.shape[:-1] == v.shape[:-1] and (packed or k.shape[0] == q.shape[0])
    if not same:
        expected = [*k.shape[:-1], v.shape[-1]] if packed else [q.shape[0], *k.shape[1:-1], v.shape[-1]]
        raise ValueError(f"v must have shape {expected} with k {list(k.shape)}, got {list(v.shape)}")
    H, H_kv = q.shape[1], k.shape[1]
    if H_kv != H and not enable_gqa:
        raise ValueError(f"k and v must have the {H} heads of q, got {H_kv}; fewer need enable_gqa=True")
    if H_kv != H and (H_kv < 1 or H % H_kv):
        raise ValueError(f"the heads of k must divide those of q, {H}, got {H_kv}")
    _check_context(q, k, context, packed, H)


def _check_context(q: Tensor, k: Tensor, context: Context, packed: bool, H: int) -> None:
    if packed:
        _check_packed(q, k, context)
        B = context.cu_seqlens_q.shape[0] - 1
    else:
        B = q.shape[0]
        full = [B, H, q.shape[2], k.shape[2]]
        for name, t in (("mask", context.mask), ("bias", context.bias)):
            if t is not None and not _broadcasts(t, full):
                raise ValueError(f"{name} must broadcast to [B, H, L_q, L_k] = {full}, got {list(t.shape)}")
    if context.mask is not None and context.mask.dtype != torch.bool:
        raise TypeError(f"mask must be bool or the dtype of q, {q.dtype}, got {context.mask.dtype}")
    if context.bias is not None and context.bias.dtype != q.dtype:
        raise TypeError(f"bias must have the dtype of q, {q.dtype}, got {context.bias.dtype}")
    slopes, sink = context.alibi_slopes, context.sink
    if slopes is not None and tuple(slopes.shape) not in ((H,), (B, H)):
        raise ValueError(
            f"alibi_slopes must have shape [H] = [{H}] or [B, H] = [{B}, {H}], got {list(slopes.shape)}"
        )
    if sink is not None and tuple(sink.shape) != (H,):
        raise ValueError(f"sink must have shape [H] = [{H}], got {list(sink.shape)}")


def _broadcasts(t: Tensor, full: list[int]) -> bool:
    last = full[4 - t.dim() :]
    return t.dim() <= 4 and all(a in (1, b) for a, b in zip(t.shape, last, strict=True))


def _check_packed(q: Tensor, k: Tensor, context: Context) -> None:
    if context.mask is not None or context.bias is not None:
        raise ValueError("mask and bias need dense q, k and v, cu_seqlens were given")
    starts = {"cu_seqlens_q": (context.cu_seqlens_q, q), "cu_seqlens_k": (context.cu_seqlens_k, k)}
    for name, (cu, rows) in starts.items():
        if cu is None:
            raise ValueError(f"cu_seqlens_q and cu_seqlens_k go together, {name} is missing")
        if cu.dtype not in (torch.int32, torch.int64):
            raise TypeError(f"{name} must be int32 or int64, got {cu.dtype}")
        if cu.dim() != 1 or cu.shape[0] < 1:
            raise ValueError(f"{name} must have shape [B + 1], got {list(cu.shape)}")
        # on a GPU the kernels bound every row instead: reading would wait for the device
        if cu.device.type == "cpu" and not torch.compiler.is_compiling():
            _check_starts(name, cu, rows.shape[0])
    if context.cu_seqlens_q.shape != context.cu_seqlens_k.shape:
        lengths = context.cu_seqlens_q.shape[0], context.cu_seqlens_k.shape[0]
        raise ValueError(
            f"cu_seqlens_q and cu_seqlens_k must be equally long, got {lengths[0]} and {lengths[1]}"
        )


def _check_starts(name: str, cu: Tensor, total: int) -> None:
    starts = cu.tolist()
    rises = all(a <= b for a, b in zip(starts, starts[1:], strict=False))
    if starts[0] != 0 or starts[-1] != total or not rises:
        shown = f"{starts[:8]}{' and more' if len(starts) > 8 else ''}"
        raise ValueError(f"{name} must rise from 0 to the number of rows, {total}, got {shown}")


def longest(name: str, given: int | None, cu: Tensor, total: int) -> int:
    """The bound on the lengths of packed sequences: what was given, else the number of rows."""
    if given is None:
        return total
    if not isinstance(given, (int, torch.SymInt)) or given < 0:
        raise ValueError(f"{name} must be a number of rows, got {given!r}")
    if cu.device.type == "cpu" and not torch.compiler.is_compiling():
        found = max(cu.diff().tolist(), default=0)
        if found > given:
            raise ValueError(f"{name} must be at least the longest sequence, {found}, got {given}")
    return given


def check_call(
    D: int,
    causal: bool | str,
    window: tuple[int, int] | None,
    softcap: float | None,
    dropout_p: float,
    scale: float | None,
    max_q: int,
    max_k: int,
) -> Call:
    """The numbers of a call as a `Call`; ValueError where one makes no sense."""
    if causal not in CAUSAL or causal is True:
        raise ValueError(f"causal must be False, 'top_left' or 'bottom_right', got {causal!r}")
    window = (-1, -1) if window is None else tuple(window)
    if len(window) != 2 or not all(isinstance(side, int) and side >= -1 for side in window):
        raise ValueError(f"window must be (left, right), each a number of keys or -1, got {window}")
    if not 0 <= dropout_p < 1:
        raise ValueError(f"dropout_p must be at least 0 and below 1, got {dropout_p}")
    if softcap is not None and not 0 < softcap < math.inf:
        raise ValueError(f"softcap must be a finite number above 0, got {softcap}")
    if scale is not None and not -math.inf < scale < math.inf:
        raise ValueError(f"scale must be finite, got {scale}")
    scale = (D**-0.5 if D else 1.0) if scale is None else scale
    return Call(float(scale), causal, window, float(softcap or 0.0), float(dropout_p), max_q, max_k)
