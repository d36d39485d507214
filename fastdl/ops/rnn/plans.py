"""What was decided for a signature, remembered: checking and choosing take 30 us, looking up 3."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import Parameter

from ... import dispatch
from ...transforms import eager
from .. import tf32

Decision = TypeVar("Decision")

_decided: dict[Hashable, object] = {}
_MOST = 4096


def signature(*tensors: Tensor | None) -> tuple:
    """What a decision may depend on of tensors."""
    # one flat list: a tuple for each tensor would cost as much again
    found = []
    for t in tensors:
        if t is None:
            found.append(None)
        else:
            found += (t.shape, t.dtype, t.device)
    return tuple(found)


def remembered(key: tuple, decide: Callable[[], Decision]) -> Decision:
    """`decide()`, once for each key under the same settings; never while torch.compile traces."""
    if torch.compiler.is_compiling():
        return decide()
    settings = dispatch.settings
    rounded = tf32.allowed("rnn")
    return _once((key, settings.backend, settings.strict, settings.precision, rounded), decide)


def quickly_remembered(
    key: tuple,
    required: tuple[Tensor, ...],
    optional: tuple[Tensor | None, ...],
    decide: Callable[[bool], Decision | None],
) -> Decision | None:
    """`decide(recorded)`, once for each key and metadata of plain tensors on the CPU, without settings, autocast or
    transforms: asked in 4 us instead of 30. None: look closer.
    """
    if not dispatch.settings.automatic or not eager():
        return None
    found, requires_grad = [key], False
    for t in (*required, *(t for t in optional if t is not None)):
        if (type(t) is not Tensor and type(t) is not Parameter) or not t.is_cpu or t.is_nested:
            return None
        found += (t.shape, t.dtype)
        requires_grad = requires_grad or t.requires_grad
    recorded = requires_grad and torch.is_grad_enabled()
    given = tuple([t is None for t in optional])
    return _once((*found, given, recorded), lambda: decide(recorded))


def _once(key: tuple, decide: Callable[[], Decision | None]) -> Decision | None:
    try:
        decision = _decided.get(key)
    except TypeError:  # a list among the arguments, a symbolic size
        return decide()
    if decision is None:
        decision = decide()
        if decision is None:
            return None
        if len(_decided) >= _MOST:
            _decided.clear()
        _decided[key] = decision
    return decision
