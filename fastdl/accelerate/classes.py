"""Taking back a class that was assigned to an instance, also where another library made its own of it since."""

from __future__ import annotations

from torch import nn


def take_back(module: nn.Module, assigned: type, original: type) -> None:
    """Make `module` an instance of `original` where it is one of `assigned`.

    FSDP2 gives an instance a class with its own mixin and the class it had as bases; that one is made again.
    """
    module.__class__ = _exchanged(type(module), assigned, original)


def _exchanged(kind: type, assigned: type, original: type) -> type:
    if kind is assigned:
        return original
    if not issubclass(kind, assigned):
        return kind
    bases = tuple(_exchanged(base, assigned, original) for base in kind.__bases__)
    own = {name: value for name, value in kind.__dict__.items() if name not in ("__dict__", "__weakref__")}
    return type(kind)(kind.__name__, bases, own)
