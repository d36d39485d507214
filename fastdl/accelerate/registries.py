"""Registries of functions from which code picks one at each call: dicts, and the attention functions of transformers.

Neither the registry nor the name it has is touched: what a read of it gives is exchanged after the read. So what is
written to it, asked of it or registered later is its own affair, and each call gets what the registry says then.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from types import FunctionType

import torch

from .unwritable import Unwritable

_READS = ("get", "get_interface")


def read(node: ast.expr) -> ast.expr | None:
    """What an expression would read an entry of: `x` in `x[…]`, `x.get(…)` and `x.get_interface(…)`."""
    if isinstance(node, ast.Subscript):
        return node.value if isinstance(node.ctx, ast.Load) else None
    called = node.func if isinstance(node, ast.Call) else None
    return called.value if isinstance(called, ast.Attribute) and called.attr in _READS else None


def write(node: ast.Assign | ast.Call) -> tuple[list[ast.expr], list[ast.expr]]:
    """(what a statement may put something into, what it puts there): `x[…] = y`, `x.register(…, y)` and the like."""
    if isinstance(node, ast.Assign):
        return [each.value for each in node.targets if isinstance(each, ast.Subscript)], [node.value]
    if isinstance(node.func, ast.Attribute) and node.func.attr not in _READS:
        return [node.func.value], [*node.args, *(each.value for each in node.keywords)]
    return [], []


def is_one(value: object) -> bool:
    return issubclass(type(value), (dict, *_interfaces()))


def functions(registry: object) -> list[Callable]:
    """Those it holds; none if it is no registry. Other mappings may load something when they are read."""
    if not is_one(registry):
        return []
    held = dict.values(registry) if issubclass(type(registry), dict) else registry.values()
    return [value for value in held if callable(value)]


def _interfaces() -> tuple[type, ...]:
    """The class of transformers, if it is loaded."""
    found = getattr(sys.modules.get("transformers.modeling_utils"), "AttentionInterface", None)
    return (found,) if isinstance(found, type) else ()


class Entries:
    """Called with what a registry gave, gives what stands for it, or the same."""

    def __init__(self, registry: object, stands_for: Callable[[object], object | None]) -> None:
        self.registry = registry
        self._stands_for = stands_for
        self._substituted: tuple[tuple[object, object], ...] = ()
        self._kept: dict[FunctionType, str] = {}  # what cannot be substituted, and why

    def __call__(self, value: object) -> object:
        for old, new in self._substituted:
            if value is old:
                return new
        # a compiler cannot read sources: to it, what was registered since is what it is
        return value if torch.compiler.is_compiling() else self._found(value)

    def look(self) -> bool:
        """Whether anything that the registry holds now is substituted."""
        held = functions(self.registry)
        return [self(each) for each in held] != held

    def kept(self) -> list[str]:
        """Why functions that it holds now are not substituted, although they should be."""
        held = [each for each in functions(self.registry) if isinstance(each, FunctionType)]
        return [self._kept[each] for each in held if each in self._kept]

    def _found(self, value: object) -> object:
        if isinstance(value, FunctionType) and value in self._kept:
            return value
        try:
            new = self._stands_for(value)
        except Unwritable as reason:
            self._kept[value] = str(reason)
            return value
        if new is None:
            return value
        self._substituted += ((value, new),)
        return new
