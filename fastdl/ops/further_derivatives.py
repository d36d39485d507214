"""What the backward of a fused backward is made of: the reference's derivatives, which autograd can take further."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def beginnings(tensors: Iterable[Tensor | None]) -> list[Tensor | None]:
    """Each tensor under a name of its own, where derivatives by it end; None stays None.

    With create_graph they lead on to the tensor itself. `once_differentiable` would cut them off there without a word:
    the error it leaves behind stands on no way to an input that `torch.autograd.grad` is asked for.
    """
    recorded = torch.is_grad_enabled()
    with torch.enable_grad():
        return [_beginning(t, recorded) for t in tensors]


def _beginning(t: Tensor | None, recorded: bool) -> Tensor | None:
    if t is None:
        return None
    return t.view_as(t) if recorded and t.requires_grad else t.detach().requires_grad_()


def second_derivative(
    first: Iterable[Tensor], by: Iterable[Tensor | None], arrived: Iterable[Tensor]
) -> list[Tensor | None]:
    """The gradients of `first`, at which those in `arrived` came in, by some `beginnings`; None for None."""
    by = list(by)
    wanted = [t for t in by if t is not None]
    recorded = torch.is_grad_enabled()
    found = iter(
        torch.autograd.grad(tuple(first), wanted, tuple(arrived), create_graph=recorded, allow_unused=True)
    )
    return [None if t is None else next(found) for t in by]
