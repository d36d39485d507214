"""F.scaled_dot_product_attention where a model's own code calls it: the methods of one module, written again."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import FunctionType

import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from ..nn import functional
from .registries import Entries
from .substitution import Substitution, is_library, registries_of
from .unwritable import Unwritable

_TORCH, _OURS = F.scaled_dot_product_attention, functional.scaled_dot_product_attention
_FUSED = Substitution(_TORCH, _OURS)


def methods(kind: type, substitution: Substitution = _FUSED) -> dict[str, object]:
    """The methods of a class that call it, by name, as they are to be instead. Raises Unwritable."""
    found: dict[str, object] = {}
    above: dict[str, list[str]] = {}  # by method, the names in the code of those that override it
    for base in kind.__mro__:
        for name, value in vars(base).items():
            bound = isinstance(value, (staticmethod, classmethod))
            function = value.__func__ if bound else value
            if name.startswith("__") or not isinstance(function, FunctionType) or is_library(_module(base)):
                continue
            made = substitution.copy(function)
            if made is not None and name in above:
                if "super" in above[name] or base.__name__ in above[name]:
                    raise Unwritable(
                        f"{base.__name__}.{name} calls it, and {kind.__name__}.{name} calls that"
                    )
            elif made is not None:
                found[name] = type(value)(made) if bound else made
            above.setdefault(name, []).extend(function.__code__.co_names)
    for entries in _registries(found.values()):
        entries.look()
    return found


def _registries(found: Iterable[object]) -> list[Entries]:
    """Those that methods read."""
    return [each for made in found for each in registries_of(getattr(made, "__func__", made))]


def _module(kind: type) -> dict[str, object]:
    return {"__name__": kind.__module__}


def put(graph: fx.Graph) -> None:
    """The same in a traced forward."""
    for node in graph.nodes:
        if node.op == "call_function" and node.target is _TORCH:
            node.target = _OURS


class Calls:
    """The calls in one module's forward; the first one that a call of the module makes is measured."""

    measured: Mapping[str, nn.Module] = {}

    def __init__(self, module: nn.Module, kind: type, refusal: str | None) -> None:
        """`kind`: the class the module has without fused calls."""
        self.module, self.kind, self.names, self.refusal = module, kind, (), refusal
        self.registries: list[Entries] = []
        try:
            found = methods(kind)
            self.names, self.registries = tuple(found), _registries(found.values())
        except Unwritable as reason:
            self.names, self.refusal = ("forward",), self.refusal or str(reason)
        if "forward" in module.__dict__:
            self.refusal = f"{kind.__name__} has a forward of its own"
        elif parametrize.is_parametrized(module):
            self.refusal = f"{kind.__name__} is parametrized"

    @property
    def head(self) -> nn.Module:
        return self.module

    @property
    def description(self) -> str:
        kept = sorted({reason for entries in self.registries for reason in entries.kept()})
        where = f"scaled_dot_product_attention in {self.kind.__name__}.{', '.join(self.names)}"
        return "; ".join([where, *(f"kept in its registry: {reason}" for reason in kept)])

    def compute(
        self,
        modules: dict[str, nn.Module],
        args: tuple,
        kwargs: Mapping[str, object],
        fused: bool,
        exact: bool,
    ) -> tuple[object, None]:
        given = _SIGNATURE.bind(*args, **kwargs).arguments
        mask = given.get("attn_mask")
        if mask is not None:
            query = given["query"]
            given["attn_mask"] = mask.to(query.dtype).detach() if mask.is_floating_point() else mask
        if exact:
            given["dropout_p"] = 0.0
        return (_OURS if fused else _TORCH)(**given), None

    @contextmanager
    def watched(self, first: Callable[[nn.Module, tuple, dict[str, object]], None]) -> Iterator[None]:
        """Inside, `first` sees the arguments of what the module calls, before torch computes it."""

        def watch(*args: object, **kwargs: object) -> Tensor:
            first(self.module, args, kwargs)
            return _TORCH(*args, **kwargs)

        kind = type(self.module)
        self.module.__class__ = type(kind)(
            kind.__name__, (kind,), methods(self.kind, Substitution(_TORCH, watch))
        )
        try:
            yield
        finally:
            self.module.__class__ = kind


_SIGNATURE = inspect.signature(_OURS)
