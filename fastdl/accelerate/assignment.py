"""Class assignment: a module becomes an instance of the fused class and stays the same object.

Its Parameters and its place in every optimizer, hook and container hold. What it was is kept in its `__dict__`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from .classes import take_back

_ASSIGNED = "_fastdl_class"


@dataclass(frozen=True)
class Replacement:
    """The class that computes what a module, and what follows it, compute, and the attributes it needs."""

    kind: type[nn.Module]
    attributes: dict[str, object] = field(default_factory=dict)


def assign(module: nn.Module, replacement: Replacement) -> None:
    """Make `module` an instance of the replacement's class."""
    module.__dict__[_ASSIGNED] = (type(module), replacement.kind, tuple(replacement.attributes))
    module.__dict__.update(replacement.attributes)
    module.__class__ = replacement.kind


def is_assigned(module: nn.Module) -> bool:
    return _ASSIGNED in module.__dict__


def take_assigned_back(module: nn.Module) -> None:
    """The inverse of `assign`; nothing happens to other modules."""
    if is_assigned(module):
        original, assigned, attributes = module.__dict__.pop(_ASSIGNED)
        take_back(module, assigned, original)
        for name in attributes:
            module.__dict__.pop(name, None)
