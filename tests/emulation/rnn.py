"""The CUDA kernels of rnn on CPU tensors, by emulation: the raw operators' arguments and results."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor

from fastdl.ops.rnn.reference import Sequence, accumulate_dtype
from fastdl.ops.rnn.reference_backward import SequenceGradients
from fastdl.ops.rnn.steps import Context
from fastdl.ops.rnn.structure import CELLS, Structure

from . import library
from .memory import Memory
from .structs import structs

DTYPES = {torch.float64: 0, torch.float32: 1, torch.float16: 2, torch.bfloat16: 3}
FAMILY = "rnn"
WEIGHTS = (
    "weight_ih", "bias_ih", "weight_hh", "bias_hh", "weight_hr", "weight_peephole", "weight_norm_hh",
    "weight_norm_c", "bias_norm_c",
)  # fmt: skip

_STRUCTS = structs("ops/rnn/rnn.h")
RnnWeights, RnnStructure, RnnRows = (_STRUCTS[name] for name in ("RnnWeights", "RnnStructure", "RnnRows"))
RnnSequence, RnnForward, RnnBackward = (
    _STRUCTS[name] for name in ("RnnSequence", "RnnForward", "RnnBackward")
)


class Call(NamedTuple):
    """What forward and backward are both given."""

    h_0: Tensor | None
    c_0: Tensor | None
    weights: list[Tensor]
    context: Context
    s: Structure


class Emulated:
    """One schedule of the emulated machine. Tensors are copied to guarded memory; outputs start as NaN.

    `launcher` names the kernels: rnn_steps, rnn_persistent or rnn_grid. `largest_cluster`: 16 as sm_90, 1 as what came
    before; `multiprocessors`: blocks that a grid may have; `largest_shared`: bytes of a block.
    """

    def __init__(
        self,
        launcher: str = "rnn_steps",
        schedule: int = 0,
        largest_cluster: int = 16,
        multiprocessors: int = 108,
        largest_shared: int = 227 << 10,
    ) -> None:
        self.launcher, self.schedule, self.largest_cluster = launcher, schedule, largest_cluster
        self.multiprocessors, self.largest_shared = multiprocessors, largest_shared
        self.library = library.load(FAMILY)

    def forward(self, x: Tensor, call: Call, save: bool = True) -> Sequence:
        memory = Memory()
        q, sizes = _sequence(memory, x, call)
        s, D, H, R, acc = call.s, call.s.directions, sizes.H, sizes.R, accumulate_dtype(x.dtype)
        lstm, rows = s.cell == "lstm", x.shape[:-1]

        def output(wanted: bool, *shape: int, dtype: torch.dtype = x.dtype) -> Tensor:
            return memory.empty(shape, dtype) if wanted else x.new_empty(0, dtype=dtype)

        result = Sequence(
            output(True, *rows, D * R),
            output(True, D, sizes.B, R),
            output(lstm, D, sizes.B, H, dtype=acc),
            output(save, *rows, D * s.saved_width * H),
            output(save and lstm, *rows, D * H, dtype=acc),
            output(save and s.layer_norm, *rows, D, dtype=acc),
        )
        row_stride = x.stride(-2) if x.numel() else x.shape[-1]
        p = RnnForward(q, memory.input(x), row_stride, *map(memory.address, result))
        self._run("forward", p, memory)
        return result

    def backward(
        self, grads: tuple[Tensor | None, Tensor | None, Tensor | None], saved: Sequence, call: Call
    ) -> SequenceGradients:
        memory = Memory()
        q, sizes = _sequence(memory, saved.output, call)
        s, D, H, R, dtype = call.s, call.s.directions, sizes.H, sizes.R, saved.output.dtype
        lstm, rows = s.cell == "lstm", saved.output.shape[:-1]

        def output(wanted: bool, *shape: int, dtype: torch.dtype = dtype) -> Tensor:
            return memory.empty(shape, dtype) if wanted else saved.output.new_empty(0, dtype=dtype)

        W = s.recurrent_grad_width
        result = SequenceGradients(
            output(True, *rows, D * s.num_gates * H),
            output(W > 0, *rows, D * W * H),
            output(True, D, sizes.B, R),
            output(lstm, D, sizes.B, H, dtype=accumulate_dtype(dtype)),
            output(s.has_projection, *rows, D * R),
            output(lstm and s.layer_norm, *rows, D * H),
        )
        given = (*grads, saved.output, saved.gates, saved.cells, saved.rstd)
        p = RnnBackward(q, *map(memory.input, given), *map(memory.address, result))
        self._run("backward", p, memory)
        return result

    def refusals(self, s: Structure, T: int, B: int, H: int, dtype: torch.dtype) -> list[str | None]:
        """Why not forward, why not backward, of a dense layer."""
        q = RnnSequence(RnnStructure(CELLS.index(s.cell), *s[1:]), RnnRows(T, B, T * B, B, 1))
        q.H, q.R, q.dtype = H, H, DTYPES[dtype]
        return [self._refusal("forward", RnnForward(q)), self._refusal("backward", RnnBackward(q))]

    def _refusal(self, kind: str, p: ctypes.Structure) -> str | None:
        self._become()
        ask = getattr(self.library, f"emulated_{self.launcher}_{kind}_refusal")
        ask.restype = ctypes.c_char_p
        refusal = ask(ctypes.byref(p))
        return None if refusal is None else refusal.decode()

    def _become(self) -> None:
        self.library.emulation_set_largest_cluster(self.largest_cluster)
        self.library.emulation_set_multiprocessors(self.multiprocessors)
        self.library.emulation_set_largest_shared(self.largest_shared)

    def _run(self, kind: str, p: ctypes.Structure, memory: Memory) -> None:
        if self.launcher != "rnn_steps" and (refusal := self._refusal(kind, p)) is not None:
            raise ValueError(refusal)
        self._become()
        size = getattr(self.library, f"emulated_{self.launcher}_{kind}_workspace")
        size.restype = ctypes.c_int64
        workspace = memory.empty((size(ctypes.byref(p)),), torch.uint8)
        arguments = ctypes.byref(p), ctypes.c_void_p(memory.address(workspace))
        library.run(self.library, f"emulated_{self.launcher}_{kind}", *arguments, schedule=self.schedule)
        memory.check()


class _Sizes(NamedTuple):
    B: int
    H: int
    R: int


def _sequence(memory: Memory, rows: Tensor, call: Call) -> tuple[ctypes.Structure, _Sizes]:
    s, context = call.s, call.context
    by_direction = s.by_direction(call.weights)
    R = by_direction[0]["weight_hh"].shape[1]
    H = by_direction[0]["weight_hh"].shape[0] // s.num_gates
    if context.batch_sizes is not None:
        counts = context.batch_sizes.tolist()
        T, B, row_t, row_b = len(counts), max(counts, default=0), 0, 0
        offsets = torch.tensor([sum(counts[:t]) for t in range(T)], dtype=torch.int64)
        host = memory.input(context.batch_sizes), memory.input(offsets)
    else:
        T, B = rows.shape[:2][:: -1 if s.batch_first else 1]
        row_t, row_b = (1, T) if s.batch_first else (B, 1)
        host = None, None
    weights = (RnnWeights * 2)(
        *(RnnWeights(*(memory.input(w.get(name)) for name in WEIGHTS)) for w in by_direction)
    )
    given = (call.h_0, call.c_0, *context[1:6])
    q = RnnSequence(
        RnnStructure(CELLS.index(s.cell), *s[1:]),
        RnnRows(T, B, rows.shape[:-1].numel(), row_t, row_b, *host),
        0, H, R, DTYPES[rows.dtype], weights, *map(memory.input, given), (ctypes.c_double * 2)(*context.zoneout),
    )  # fmt: skip
    return q, _Sizes(B, H, R)
