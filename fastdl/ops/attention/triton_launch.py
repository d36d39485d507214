"""What the launches of one call of the Triton kernels share: sizes, strides, constants."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from ..philox import dropout_threshold
from . import triton_tiles
from .call import Call, length
from .reference import Context

# An open side of the window: further than any key.
OPEN = 1 << 29

# Two programs for each multiprocessor, of four blocks of keys at least; one program combines a row's ranges.
_PROGRAMS_OF_PROCESSOR, _FEWEST_BLOCKS, _MOST_SPLITS = 2, 4, 128
# Of the interpreter's machine.
_INTERPRETED_PROCESSORS = 8


def on_device_of(t: Tensor) -> contextlib.AbstractContextManager:
    return torch.cuda.device(t.device) if t.is_cuda else contextlib.nullcontext()


def strides_of(t: Tensor) -> tuple[int, int, int]:
    """Of b, h and l: dense [B, H, L, D], packed [L, H, D]."""
    return t.stride()[:3] if t.dim() == 4 else (0, t.stride(1), t.stride(0))


def rows_of(t: Tensor) -> Tensor:
    return t if t.stride(-1) == 1 or t.shape[-1] <= 1 else t.contiguous()


def _multiprocessors(t: Tensor) -> int:
    return (
        torch.cuda.get_device_properties(t.device).multi_processor_count
        if t.is_cuda
        else _INTERPRETED_PROCESSORS
    )


def _broadcast(t: Tensor | None) -> tuple[int, ...]:
    return (
        (0,) * 4 if t is None else tuple(0 if n == 1 else s for n, s in zip(t.shape, t.stride(), strict=True))
    )


class Launch:
    """What the launches of a call share."""

    def __init__(
        self, q: Tensor, k: Tensor, v: Tensor, context: Context, call: Call, tiles: triton_tiles.Tiles
    ) -> None:
        self.q, self.k, self.v, self.context, self.tiles = rows_of(q), rows_of(k), rows_of(v), context, tiles
        self.packed = context.cu_seqlens_q is not None
        self.B = context.cu_seqlens_q.shape[0] - 1 if self.packed else q.shape[0]
        self.H, self.H_kv = q.shape[1], k.shape[1]
        self.L_q, self.L_k = length(q), length(k)
        self.max_q = min(call.max_q, self.L_q) if self.packed else self.L_q
        self.max_k = min(call.max_k, self.L_k) if self.packed else self.L_k
        mask = context.mask
        self.mask = None if mask is None else mask.view(torch.uint8)
        self.slopes = None if context.alibi_slopes is None else context.alibi_slopes.contiguous()
        self.sink = None if context.sink is None else context.sink.contiguous()
        self.starts = (context.cu_seqlens_q, context.cu_seqlens_k)
        if self.packed:
            self.starts = tuple(t.contiguous() for t in self.starts)
        left, right = call.window
        right = 0 if call.causal else right
        self.sees = (OPEN if left < 0 else min(left, OPEN), OPEN if right < 0 else min(right, OPEN))
        self.seed = context.seed if call.dropout_p else None
        self.numbers = (
            dropout_threshold(call.dropout_p) - 2**31, call.scale, call.softcap, 1 / (1 - call.dropout_p)
        )  # fmt: skip
        self.constants = {
            "D": q.shape[-1],
            "D_V": v.shape[-1],
            "CAPPED": bool(call.softcap),
            "TOP_LEFT": call.causal == "top_left",
            "RANGED": bool(call.causal) or call.window != (-1, -1),
            **tiles._asdict(),
            # The default changes between versions of triton.
            "enable_fp_fusion": True,
        }
        per_sequence = self.slopes is not None and self.slopes.dim() == 2
        self.strides = (
            *strides_of(self.q), *strides_of(self.k), *strides_of(self.v), *_broadcast(mask), *_broadcast(context.bias),
            self.H if per_sequence else 0,
        )  # fmt: skip
        self.lse_strides = (0, self.L_q) if self.packed else (self.H * self.L_q, self.L_q)
        self.sizes = (self.H, self.H // self.H_kv, self.L_q, self.L_k)

    def query_grid(self) -> tuple[int]:
        return (-(-self.max_q // self.tiles.BLOCK_M) * self.B * self.H,)

    def splits(self, blocks: int) -> int:
        """Ranges of keys of each block of rows, so that two programs run on each multiprocessor."""
        left, right = self.sees
        keys = min(self.max_k, left + right + self.max_q) if max(left, right) < OPEN else self.max_k
        of_device = _PROGRAMS_OF_PROCESSOR * _multiprocessors(self.q) // blocks
        return max(1, min(of_device, keys // (_FEWEST_BLOCKS * self.tiles.BLOCK_N), _MOST_SPLITS))

    def empty(self, like: Tensor, *shape: int) -> Tensor:
        """Contiguous. Rows of no sequence are 0: on a GPU the content of cu_seqlens is not checked."""
        return like.new_zeros(shape) if self.packed else like.new_empty(shape)
