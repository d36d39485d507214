"""The guarded memory of one emulated call: copies of its inputs, outputs that start as NaN."""

from __future__ import annotations

import torch
from torch import Tensor

from . import library
from .guard import Guarded, guarded_copy


class Memory:
    def __init__(self) -> None:
        self._blocks: list[Guarded] = []

    def input(self, t: Tensor | None) -> int | None:
        """The address of a copy; null where there is nothing."""
        if t is None or t.numel() == 0:
            return None
        copy, block = guarded_copy(t)
        self._blocks.append(block)
        return copy.data_ptr()

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        shape = torch.Size(shape)
        block = Guarded(shape.numel(), dtype)
        self._blocks.append(block)
        result = block.tensor.view(shape)
        # Tensors do not keep the mapping alive by themselves.
        result.guard = block
        return result

    def address(self, t: Tensor) -> int | None:
        return t.guard.address if t.numel() else None

    def check(self) -> None:
        if not all(block.slack_is_untouched() for block in self._blocks):
            raise library.EmulationError("bytes behind a tensor were written")
