"""The CUDA pass of conv2d on CPU tensors, by emulation: the raw operator's arguments, its result."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from fastdl.ops.conv2d.activations import ACTIVATIONS

from . import library
from .guard import Guarded
from .structs import structs

DTYPES = {torch.float64: 0, torch.float32: 1, torch.float16: 2, torch.bfloat16: 3}

Conv2dEpilogue = structs("ops/conv2d/conv2d.h")["Conv2dEpilogue"]


class Emulated:
    """One schedule of the emulated machine. Tensors are copied to guarded memory, `skew` elements off alignment."""

    def __init__(self, schedule: int = 0, skew: int = 0) -> None:
        self.schedule, self.skew = schedule, skew
        self.library = library.load("conv2d")

    def epilogue(
        self,
        y: Tensor,
        bias: Tensor | None,
        scale: Tensor | None,
        residual: Tensor | None,
        activation: str | None,
    ) -> Tensor:
        N, C, H, W = y.shape
        channels_last = not y.is_contiguous()
        blocks = [None if t is None else self._block(t) for t in (y, bias, scale, residual)]
        addresses = [None if b is None else b.address + self.skew * y.element_size() for b in blocks]
        args = Conv2dEpilogue(
            N, C, H * W, DTYPES[y.dtype], channels_last, *addresses, ACTIVATIONS[activation]
        )
        library.run(self.library, "emulated_conv2d_epilogue", ctypes.byref(args), schedule=self.schedule)
        if not all(block is None or block.slack_is_untouched() for block in blocks):
            raise library.EmulationError("bytes behind a tensor were written")
        return blocks[0].tensor[self.skew :].as_strided(y.shape, y.stride()).clone()

    def _block(self, t: Tensor) -> Guarded:
        block = Guarded(t.numel() + self.skew, t.dtype)
        if t.numel():
            block.tensor[self.skew :].as_strided(t.shape, t.stride()).copy_(t)
        return block
