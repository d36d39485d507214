"""What a trace takes into its graph: modules as leaves, and arguments that torch.fx makes anew as they were."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator

from torch import Size, Tensor, fx, nn

from .purity import Untraceable
from .stand_ins import Value, origin

_CHANGEABLE = "it gives a module a list or dict that the module may change"


class Tracer(fx.Tracer):
    def __init__(self) -> None:
        super().__init__()
        self._given: list[list | dict] = []  # to modules

    def call_module(
        self, m: nn.Module, forward: Callable, args: tuple, kwargs: dict[str, object]
    ) -> fx.Proxy:
        called = super().call_module(m, forward, args, kwargs)
        given = list(_containers((*args, *kwargs.values())))
        if not all(given):  # an empty one is there to be filled
            raise Untraceable(_CHANGEABLE)
        self._given += given
        return called

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if not module_qualified_name:
            raise Untraceable("it calls itself")
        return True

    def getattr(self, attr: str, attr_val: object, parameter_proxy_cache: dict) -> object:
        return attr_val  # reads are the recorder's

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return Value(node, self)

    def create_arg(self, a: object) -> object:
        if isinstance(a, fx.Proxy):
            return a.node
        if isinstance(a, Tensor):
            raise Untraceable("it makes a tensor that does not depend on its input")
        if any(a is given for given in self._given):
            raise Untraceable(_CHANGEABLE)
        if type(a) in _SIMPLIFIED:
            parts = self.create_arg(_SIMPLIFIED[type(a)](a))
            return self.create_node("call_function", type(a), (parts,), {})
        try:
            if _is_made_anew(a):
                return super().create_arg(a)
        except (NotImplementedError, TypeError):
            pass
        raise Untraceable(f"it passes on a {type(a).__name__}, which a trace cannot make")

    def to_bool(self, obj: fx.Proxy) -> bool:
        raise Untraceable(f"its control flow depends on {origin(obj.node)}")

    def iter(self, obj: fx.Proxy) -> Iterator:
        raise Untraceable("it iterates over a value of unknown length")


def _containers(values: Iterable[object]) -> Iterator[list | dict]:
    """The lists and dicts among values, and in them."""
    for value in values:
        if isinstance(value, fx.Proxy):  # asked first: it would not answer to others
            continue
        if isinstance(value, (list, dict)):
            yield value
        if isinstance(value, (tuple, list, dict)):
            yield from _containers(value.values() if isinstance(value, dict) else value)


# What torch.fx would make of these.
_SIMPLIFIED = {OrderedDict: dict, Size: tuple}


def _is_made_anew(value: object) -> bool:
    """Whether torch.fx's way to make an object from its parts gives one like it; it has none for many others.

    A class may have a constructor of its own, which is tried. Raises TypeError where it takes other arguments.
    """
    kind = type(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return all(a is b for a, b in zip(kind(*value), value, strict=True))
    if isinstance(value, (tuple, list, dict)):
        return kind in (tuple, list, dict)
    if dataclasses.is_dataclass(value):
        parts = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        made = kind(**parts)
        return all(getattr(made, name) is part for name, part in parts.items())
    return True
