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
    tf32 = torch._C._get_cudnn_allow_tf32()  # torch.backends.cudnn.allow_tf32 takes 1 us
    key = (key, settings.backend, settings.strict, settings.precision, tf32)
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
