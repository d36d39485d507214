"""The steps of a sequence, dense or packed: what belongs to each, and what came before it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .structure import Structure


class Context(NamedTuple):
    """Everything of a sequence call that is neither differentiated nor a weight; see schema.py."""

    batch_sizes: Tensor | None = None
    lengths: Tensor | None = None
    reset: Tensor | None = None
    recurrent_mask: Tensor | None = None
    zoneout_h: Tensor | None = None
    zoneout_c: Tensor | None = None
    zoneout: tuple[float, float] = (0.0, 0.0)


class Steps:
    """Turns tensors with an entry for each step and sequence ([*rows, width]) into one tensor a step and back."""

    def __init__(self, s: Structure, rows: Tensor, context: Context) -> None:
        """`rows`: any tensor of the call with the rows in front."""
        self.context, self.rows = context, rows
        self.packed = context.batch_sizes is not None
        self.time = 1 if s.batch_first and not self.packed else 0
        if self.packed:
            self.counts = context.batch_sizes.tolist()
            self.batch = self.counts[0] if self.counts else 0
        else:
            self.batch = rows.shape[1 - self.time]
            self.counts = [self.batch] * rows.shape[self.time]

    def order(self, d: int) -> range:
        """The steps in the order in which direction d takes them."""
        return range(len(self.counts)) if d == 0 else range(len(self.counts) - 1, -1, -1)

    def split(self, rows: Tensor, d: int = 0, width: int | None = None) -> list[Tensor]:
        """[*rows, ...] -> one [n, ...] a step; with a `width`, direction d's columns alone."""
        if width is not None:
            rows = rows[..., d * width : (d + 1) * width]
        return list(rows.split(self.counts) if self.packed else rows.unbind(self.time))

    def join(self, directions: list[list[Tensor]], width: int, dtype: torch.dtype) -> Tensor:
        """The inverse of `split`: [*rows, len(directions) * width]."""
        if not self.counts:
            shape = self.rows.shape[: 1 if self.packed else 2]
            return self.rows.new_empty(*shape, len(directions) * width, dtype=dtype)
        each = [torch.cat(d) if self.packed else torch.stack(d, self.time) for d in directions]
        return torch.cat(each, -1).to(dtype)

    def active(self, t: int) -> Tensor | None:
        """[n, 1] bool: which rows of step t lie within their lengths; None: all."""
        lengths = self.context.lengths
        return None if lengths is None else (t < lengths)[:, None]

    def reset(self, t: int, old: Tensor) -> Tensor:
        """The state that step t starts from: `old`, or zero where the sequence starts anew."""
        reset = self.context.reset
        return old if reset is None else old.masked_fill(self.split(reset)[t][:, None], 0)

    def previous(self, values: list[Tensor], initial: Tensor, d: int) -> list[Tensor]:
        """The state each step of direction d starts from, given those after every step (`values`) and the first."""
        found = []
        for t, n in enumerate(self.counts):
            before = t - 1 if d == 0 else t + 1
            old = initial[:n]
            if 0 <= before < len(self.counts):
                m = min(n, self.counts[before])
                old = torch.cat([values[before][:m].to(initial.dtype), initial[m:n]])
                active = self.active(before)
                old = old if active is None else torch.where(active[:n], old, initial[:n])
            found.append(self.reset(t, old))
        return found
