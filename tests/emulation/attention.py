"""The CUDA kernels of attention on CPU tensors, by emulation: the raw operators' arguments and results."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from fastdl.ops.attention.reference import Context

from . import library
from .memory import Memory
from .structs import structs

DTYPES = {torch.float64: 0, torch.float32: 1, torch.float16: 2, torch.bfloat16: 3}

_STRUCTS = structs("ops/attention/attention.h")
AttentionStrides, AttentionCall, AttentionForward, AttentionBackward = (
    _STRUCTS[f"Attention{name}"] for name in ("Strides", "Call", "Forward", "Backward")
)


class Emulated:
    """One schedule of the emulated machine. Tensors are copied to guarded memory and back; outputs start as NaN.

    `largest_shared`: bytes of shared memory a block may have, 64 KB as sm_75.
    `multiprocessors`: that its blocks spread over.
    """

    def __init__(self, schedule: int = 0, largest_shared: int = 227 << 10, multiprocessors: int = 4) -> None:
        self.schedule, self.largest_shared, self.multiprocessors = schedule, largest_shared, multiprocessors
        self.library = library.load("attention")
        for name in ("forward", "backward"):
            getattr(self.library, f"emulated_attention_{name}_workspace").restype = ctypes.c_int64

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *rest: object) -> tuple[Tensor, Tensor]:
        memory, packed = Memory(), q.dim() == 3
        output = _output(memory, (*q.shape[:-1], v.shape[-1]), q.dtype, packed)
        lse = _output(memory, (q.shape[1], q.shape[0]) if packed else q.shape[:-1], torch.float64, packed)
        c = _call(memory, q, k, v, *rest)
        a = AttentionForward(c, output=memory.address(output), lse=memory.address(lse))
        self._run("attention_forward", memory, a, c)
        return output.clone(), lse.clone()

    def backward(
        self, grad_output: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, output: Tensor,
        lse: Tensor, *rest: object,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        memory, packed, (need_bias, need_sink) = Memory(), q.dim() == 3, rest[9:]
        gradients = [_output(memory, t.shape, t.dtype, packed) for t in (q, k, v)]
        bias, sink = rest[1] if need_bias else q.new_empty(0), rest[3] if need_sink else q.new_empty(0)
        gradients += [memory.empty(t.shape, torch.float32).zero_() for t in (bias, sink)]
        names = ("grad_q", "grad_k", "grad_v", "grad_bias", "grad_sink")
        c = _call(memory, q, k, v, *rest[:9])
        grad_output = _rows(grad_output)
        a = AttentionBackward(
            c, grad_output=memory.input(grad_output), grad_output_strides=_strides(grad_output, packed),
            grad_lse=memory.input(grad_lse), output=memory.input(output), lse=memory.input(lse),
            **{name: memory.address(t) for name, t in zip(names, gradients, strict=True) if t.numel()},
        )  # fmt: skip
        a.bias_sizes[:] = bias.shape if need_bias else (0,) * 4
        self._run("attention_backward", memory, a, c)
        gradients[3] = gradients[3].to(q.dtype)
        return tuple(t.clone() for t in gradients)

    def _run(self, name: str, memory: Memory, a: ctypes.Structure, c: ctypes.Structure) -> None:
        self.library.emulation_set_largest_shared(self.largest_shared)
        self.library.emulation_set_multiprocessors(self.multiprocessors)
        bytes_needed = getattr(self.library, f"emulated_{name}_workspace")(ctypes.byref(c))
        workspace = ctypes.c_void_p(memory.address(memory.empty((bytes_needed,), torch.uint8)))
        library.run(self.library, f"emulated_{name}", ctypes.byref(a), workspace, schedule=self.schedule)
        memory.check()


def _output(memory: Memory, shape: tuple[int, ...], dtype: torch.dtype, packed: bool) -> Tensor:
    """Rows of no packed sequence stay 0."""
    made = memory.empty(shape, dtype)
    return made.zero_() if packed else made


def _rows(t: Tensor) -> Tensor:
    return t if t.stride(-1) == 1 or t.shape[-1] <= 1 else t.contiguous()


def _strides(t: Tensor, packed: bool) -> ctypes.Structure:
    return AttentionStrides(*((0, t.stride(1), t.stride(0), 1) if packed else t.stride()))


def _call(memory: Memory, q: Tensor, k: Tensor, v: Tensor, *rest: object) -> ctypes.Structure:
    context, (causal, left, right, max_q, max_k, kernels), (scale, softcap, dropout_p) = (
        Context(*rest[:7]),
        *rest[7:9],
    )
    packed = context.cu_seqlens_q is not None
    rows, slopes = 0 if packed else 2, context.alibi_slopes
    B, L_q, L_k = len(context.cu_seqlens_q) - 1 if packed else q.shape[0], q.shape[rows], k.shape[rows]
    c = AttentionCall(
        B=B, H=q.shape[1], H_kv=k.shape[1], L_q=L_q, L_k=L_k, D=q.shape[-1], D_v=v.shape[-1],
        max_q=max_q if packed else L_q, max_k=max_k if packed else L_k, dtype=DTYPES[q.dtype],
        alibi_stride_b=q.shape[1] if slopes is not None and slopes.dim() == 2 else 0,
        causal=causal, window_left=left, window_right=right, scale=scale, softcap=softcap, dropout_p=dropout_p,
        cu_seqlens_64=packed and context.cu_seqlens_q.dtype is torch.int64,
        decode=kernels == 1, short_keys=kernels == 2, hopper=kernels == 3,
    )  # fmt: skip
    for name, t in (("q", _rows(q)), ("k", _rows(k)), ("v", _rows(v))):
        setattr(c, name, memory.input(t))
        setattr(c, f"{name}_strides", _strides(t, packed))
    for name, t in context._asdict().items():
        setattr(c, name, memory.input(t))
    for name in ("mask", "bias"):
        if (t := getattr(context, name)) is not None:
            strides = (0 if n == 1 else s for n, s in zip(t.shape, t.stride(), strict=True))
            setattr(c, f"{name}_strides", AttentionStrides(*strides))
    return c
