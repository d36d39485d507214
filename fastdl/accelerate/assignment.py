"""Class assignment: a module becomes an instance of the fused class and stays the same object.

Its Parameters and its place in every optimizer, hook and container hold. What it was is kept in its `__dict__`.
"""

from __future__ import annotations

from torch import nn

from .classes import take_back

_ASSIGNED = "_fastdl_class"


def assign(module: nn.Module, kind: type[nn.Module]) -> None:
    """Make `module` an instance of `kind`."""
    module.__dict__[_ASSIGNED] = (type(module), kind)
    module.__class__ = kind


def is_assigned(module: nn.Module) -> bool:
    return _ASSIGNED in module.__dict__


def take_assigned_back(module: nn.Module) -> None:
    """The inverse of `assign`; nothing happens to other modules."""
    if is_assigned(module):
        original, assigned = module.__dict__.pop(_ASSIGNED)
        take_back(module, assigned, original)
