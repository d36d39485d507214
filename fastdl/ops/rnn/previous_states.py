"""The state that each step started from, for all rows at once, from the states after every step."""

from __future__ import annotations

import torch
from torch import Tensor

from .steps import Context
from .structure import Structure


def previous_states(after: Tensor, initial: Tensor | None, d: int, context: Context, s: Structure) -> Tensor:
    """[*rows, width] of direction d; `after` is [*rows, width] of it, `initial` [B, width] or None: zero.

    Rows past a length hold any finite value: their gradients are zero.
    """
    if context.batch_sizes is not None:
        source = torch.cat([after, initial])
        before = source.index_select(0, _packed_index(context.batch_sizes, after, d))
    else:
        before = _shifted(after, initial, d, context.lengths, 1 if s.batch_first else 0)
    return before if context.reset is None else before.masked_fill(context.reset[..., None], 0)


def _shifted(after: Tensor, initial: Tensor | None, d: int, lengths: Tensor | None, time: int) -> Tensor:
    T = after.shape[time]
    if T == 0:
        return after
    if initial is None:
        initial = after.new_zeros(after.shape[1 - time], after.shape[-1])
    first = initial.unsqueeze(time)
    if d == 0:
        return torch.cat([first, after.narrow(time, 0, T - 1)], time)
    before = torch.cat([after.narrow(time, 1, T - 1), first], time)
    if lengths is None:
        return before
    # the reverse direction starts at each sequence's own last step
    step = torch.arange(1, T + 1, device=after.device)
    inside = step[:, None] < lengths if time == 0 else step < lengths[:, None]
    return torch.where(inside[..., None], before, first)


def _packed_index(batch_sizes: Tensor, after: Tensor, d: int) -> Tensor:
    """For each packed row the row it came from; `total + b` is sequence b's initial state."""
    T, total = batch_sizes.shape[0], after.shape[0]
    step = torch.repeat_interleave(batch_sizes, output_size=total)
    row = torch.arange(total)
    sequence = row - (batch_sizes.cumsum(0) - batch_sizes)[step]
    if d == 0:
        index = torch.where(step > 0, row - batch_sizes[(step - 1).clamp(min=0)], total + sequence)
    else:
        following = torch.where(step + 1 < T, batch_sizes[(step + 1).clamp(max=T - 1)], 0)
        index = torch.where(sequence < following, row + batch_sizes[step], total + sequence)
    return index.to(after.device)
