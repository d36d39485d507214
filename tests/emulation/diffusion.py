"""The CUDA kernels of diffusion on CPU tensors, by emulation: the raw operators' arguments and results."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from fastdl.ops.diffusion import schema

from . import library
from .memory import Memory

DTYPES = {torch.float64: 0, torch.float32: 1, torch.float16: 2, torch.bfloat16: 3}
FAMILY = "diffusion"

_i64, _ptr, _bool, _double = ctypes.c_int64, ctypes.c_void_p, ctypes.c_bool, ctypes.c_double


def _struct(name: str, **fields: type) -> type[ctypes.Structure]:
    return type(name, (ctypes.Structure,), {"_fields_": list(fields.items())})


# csrc/ops/diffusion/diffusion.h, field by field
TableRows = _struct("TableRows", table=_ptr, table_rows=_i64, row_of=_ptr, row_stride=_i64, row=_i64)
DiffusionStep = _struct(
    "DiffusionStep", dtype=ctypes.c_int, samples=_i64, sample_size=_i64, rows=TableRows, sample=_ptr,
    model_output=_ptr, history=_ptr, noise=_ptr, seed=_ptr, guided=_bool, limit=ctypes.c_int, guidance=_double,
    rescale=_double, limit_value=_double, quantile=_double, prev=_ptr, x_0=_ptr, value=_ptr,
)  # fmt: skip
DiffusionStepBackward = _struct(
    "DiffusionStepBackward", dtype=ctypes.c_int, samples=_i64, sample_size=_i64, rows=TableRows, grad_prev=_ptr,
    grad_x0=_ptr, sample=_ptr, model_output=_ptr, guided=_bool, clipped=_bool, guidance=_double,
    limit_value=_double, grad_sample=_ptr, grad_model=_ptr, grad_history=_ptr, grad_noise=_ptr,
)  # fmt: skip
NormalNoise = _struct("NormalNoise", dtype=ctypes.c_int, count=_i64, seed=_ptr, output=_ptr)
NONE, CLIP, THRESHOLD = 0, 1, 2


class Emulated:
    """One schedule of the emulated machine. Tensors are copied to guarded memory; outputs start as NaN."""

    def __init__(self, schedule: int = 0, largest_cluster: int = 16) -> None:
        """`largest_cluster`: 16 as sm_90, 1 as what came before."""
        self.schedule, self.largest_cluster = schedule, largest_cluster
        self.library = library.load(FAMILY)

    def step(
        self, sample: Tensor, model_output: Tensor | None, history: Tensor | None, noise: Tensor | None,
        seed: Tensor | None, rows: Tensor | None, row: int, table: Tensor, flags: int, guidance: float,
        rescale: float, limit: float, quantile: float,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        memory = Memory()
        values = 1 if rows is None else rows.numel()
        outputs = (
            _output(memory, flags & schema.WANT_PREV, sample.shape, sample.dtype),
            _output(memory, flags & schema.WANT_X0, sample.shape, sample.dtype),
            _output(memory, flags & schema.WANT_VALUE, (values,), torch.float32),
        )
        samples, size, table_rows = _layout(memory, sample, rows, row, table)
        a = DiffusionStep(
            DTYPES[sample.dtype], samples, size, table_rows,
            *map(memory.input, (sample, model_output, history, noise, seed)),
            bool(flags & schema.GUIDED), _limit(flags), guidance, rescale, limit, quantile,
            *map(memory.address, outputs),
        )  # fmt: skip
        self._run("diffusion_step", a, memory)
        return outputs

    def backward(
        self, grad_prev: Tensor | None, grad_x0: Tensor | None, sample: Tensor | None,
        model_output: Tensor | None, rows: Tensor | None, row: int, table: Tensor, flags: int, guidance: float,
        limit: float,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        memory = Memory()
        like = grad_prev if grad_prev is not None else grad_x0
        guided = bool(flags & schema.GUIDED)
        doubled = (like.shape[0] * (1 + guided), *like.shape[1:])
        needs = (schema.NEED_SAMPLE, schema.NEED_MODEL, schema.NEED_HISTORY, schema.NEED_NOISE)
        outputs = tuple(
            _output(memory, flags & need, doubled if need == schema.NEED_MODEL else like.shape, like.dtype)
            for need in needs
        )
        samples, size, table_rows = _layout(memory, like, rows, row, table)
        a = DiffusionStepBackward(
            DTYPES[like.dtype], samples, size, table_rows,
            *map(memory.input, (grad_prev, grad_x0, sample, model_output)),
            guided, bool(flags & schema.CLIP), guidance, limit, *map(memory.address, outputs),
        )  # fmt: skip
        self._run("diffusion_step_backward", a, memory)
        return outputs

    def noise(self, like: Tensor, seed: Tensor) -> Tensor:
        memory = Memory()
        output = memory.empty(like.shape, like.dtype)
        a = NormalNoise(DTYPES[like.dtype], like.numel(), memory.input(seed), memory.address(output))
        self._run("normal_noise", a, memory)
        return output

    def _run(self, name: str, a: ctypes.Structure, memory: Memory) -> None:
        self.library.emulation_set_largest_cluster(self.largest_cluster)
        library.run(self.library, f"emulated_{name}", ctypes.byref(a), schedule=self.schedule)
        memory.check()


def _limit(flags: int) -> int:
    return THRESHOLD if flags & schema.THRESHOLD else CLIP if flags & schema.CLIP else NONE


def _output(memory: Memory, wanted: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return memory.empty(shape, dtype) if wanted else torch.empty(0, dtype=dtype)


def _layout(
    memory: Memory, like: Tensor, rows: Tensor | None, row: int, table: Tensor
) -> tuple[int, int, ctypes.Structure]:
    samples = like.shape[0] if rows is None or rows.numel() == 1 else rows.numel()
    stride = 0 if rows is None or rows.numel() == 1 else 1
    where = TableRows(memory.input(table), table.shape[0], memory.input(rows), stride, row)
    return samples, like.numel() // samples if samples else 0, where
