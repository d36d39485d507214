"""The CUDA passes of linear on CPU tensors, by emulation: the raw operators' arguments and results."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from fastdl.ops.philox import dropout_threshold

from . import library
from .guard import Guarded, guarded_copy
from .structs import structs

DTYPES = {torch.float64: 0, torch.float32: 1, torch.float16: 2, torch.bfloat16: 3}

_STRUCTS = structs("ops/linear/linear.h")
Dropout, LinearActivation, LinearActivationBackward = (
    _STRUCTS[name] for name in ("Dropout", "LinearActivation", "LinearActivationBackward")
)
_ptr = ctypes.c_void_p


class Emulated:
    """One schedule of the emulated machine. Tensors are copied to guarded memory; outputs start as NaN."""

    def __init__(self, schedule: int = 0) -> None:
        self.schedule = schedule
        self.library = library.load("linear")
        self.library.emulated_linear_activation_backward_workspace.restype = ctypes.c_int64

    def activation(self, pre: Tensor, seed: Tensor | None, activation: int, p: float) -> Tensor:
        pre_, output = guarded_copy(pre), Guarded(pre.numel(), pre.dtype)
        args = LinearActivation(
            pre.numel(), DTYPES[pre.dtype], activation, _dropout(p), pre_[0].data_ptr(), output.address
        )
        self._run("emulated_linear_activation_forward", args, seed, blocks=(pre_[1], output))
        return output.tensor.view(pre.shape).clone()

    def activation_backward(
        self,
        grad_output: Tensor,
        saved: Tensor,
        seed: Tensor | None,
        activation: int,
        p: float,
        need_bias: bool,
    ) -> tuple[Tensor, Tensor]:
        N = grad_output.shape[-1]
        grad, block = guarded_copy(grad_output)
        saved_, saved_block = guarded_copy(saved)
        grad_pre, grad_bias = (
            Guarded(size, grad_output.dtype) for size in (grad_output.numel(), N if need_bias else 0)
        )
        args = LinearActivationBackward(
            grad_output.numel() // max(N, 1), N, DTYPES[grad_output.dtype], activation, _dropout(p),
            grad.data_ptr(), saved_.data_ptr(), grad_pre.address, grad_bias.address if need_bias else None,
        )  # fmt: skip
        size = self.library.emulated_linear_activation_backward_workspace(ctypes.byref(args))
        partial = Guarded(size, torch.uint8)
        blocks = (block, saved_block, grad_pre, grad_bias, partial)
        self._run(
            "emulated_linear_activation_backward",
            args,
            seed,
            _ptr(partial.address if size else None),
            blocks=blocks,
        )
        return grad_pre.tensor.view(grad_output.shape).clone(), grad_bias.tensor.clone()

    def _run(
        self,
        launcher: str,
        args: ctypes.Structure,
        seed: Tensor | None,
        *rest: object,
        blocks: tuple[Guarded, ...],
    ) -> None:
        address = _ptr(None if seed is None else seed.data_ptr())
        library.run(self.library, launcher, ctypes.byref(args), address, *rest, schedule=self.schedule)
        if not all(block.slack_is_untouched() for block in blocks):
            raise library.EmulationError("bytes behind a tensor were written")


def _dropout(p: float) -> Dropout:
    return Dropout(p > 0, dropout_threshold(p), 1 / (1 - p), 1 - p, 0)
