"""What was decided for a signature, remembered: checking and choosing take 30 us, looking up 3."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar

import torch
from torch import Tensor

from ... import dispatch

Decision = TypeVar("Decision")

_decided: dict[Hashable, object] = {}
_MOST = 4096


def signature(*tensors: Tensor | None) -> tuple:
    """What a decision may depend on of tensors."""
    return tuple([None if t is None else (t.shape, t.dtype, t.device) for t in tensors])


def remembered(key: tuple, decide: Callable[[], Decision]) -> Decision:
    """`decide()`, once for each key under the same settings; never while torch.compile traces."""
    if torch.compiler.is_compiling():
        return decide()
    settings = dispatch.settings
    key = (key, settings.backend, settings.strict, settings.precision)
    try:
        decision = _decided.get(key)
    except TypeError:  # a list among the arguments, a symbolic size
        return decide()
    if decision is None:
        decision = decide()
        if len(_decided) >= _MOST:
            _decided.clear()
        _decided[key] = decision
    return decision
