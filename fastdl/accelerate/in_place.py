"""What is changed in place in a traced forward: the operators that do so, and where a value stays what it was."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping

from torch import fx, nn

from .. import nn as fused_nn

_OPERATORS = (
    "iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul", "iand", "ior", "ixor", "ilshift",
    "irshift",
)  # fmt: skip
# Of operator's functions, those that a forward is likely to call and that write nothing.
_PURE = {"add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "neg", "matmul", "getitem"}
# Modules whose result is memory of its own.
_FRESH = (
    nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm, nn.Linear, fused_nn.Conv2d,
    fused_nn.Linear,
)  # fmt: skip


def _function(name: str) -> Callable[[object, object], object]:
    """operator's function of that name; a graph would write its own as a statement that binds its argument anew."""

    def call(a: object, b: object) -> object:
        return getattr(operator, name)(a, b)

    call.__name__ = call.__qualname__ = name
    return call


FUNCTIONS = {name: _function(name) for name in _OPERATORS}


def _method(function: Callable[[object, object], object]) -> Callable[[fx.Proxy, object], fx.Proxy]:
    def call(self: fx.Proxy, other: object) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return call


class Augmented:
    """Mixed into stand-ins: torch.fx reads `x += y` as `x = x + y`, which leaves other names of x alone."""


for _name, _made in FUNCTIONS.items():
    setattr(Augmented, f"__{_name}__", _method(_made))


def between(first: fx.Node, last: fx.Node, own: Iterable[fx.Node]) -> list[fx.Node]:
    """The nodes from `first` to `last`, without these and the `own`."""
    left, found, node = set(own), [], first.next
    while node is not last:
        if node not in left:
            found.append(node)
        node = node.next
    return found


def is_private(value: fx.Node, user: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether nothing but `user` can reach the memory of a value."""
    if set(value.users) != {user} or not value.op.startswith("call_"):
        return False
    if value.op == "call_module" and type(modules.get(value.target)) in _FRESH:
        return True
    return all(is_private(given, value, modules) for given in value.all_input_nodes)


def may_write(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a node may change one of its arguments in place."""
    if not node.op.startswith("call_"):
        return False
    if node.op == "call_module":
        return not writes_nothing(modules[node.target])
    given = (*node.args, node.kwargs.get("inplace"))
    if any(each is True for each in given) or isinstance(given[-1], fx.Node) or "out" in node.kwargs:
        return True
    name = node.target if node.op == "call_method" else node.target.__name__
    if node.op == "call_function" and node.target.__module__ in ("_operator", "operator"):
        return name not in _PURE
    known = node.op == "call_method" or node.target is getattr or _is_of_torch(node.target)
    return not known or name.endswith("_")


def writes_nothing(module: nn.Module) -> bool:
    """Whether a module, with all in it, is torch's or ours and does not work in place."""
    for each in module.modules():
        if not type(each).__module__.startswith(("torch.nn.modules.", "fastdl.nn.")):
            return False
        if getattr(each, "inplace", False) or each._forward_hooks or each._forward_pre_hooks:
            return False
    return True


def _is_of_torch(function: Callable) -> bool:
    return str(getattr(function, "__module__", None)).partition(".")[0] == "torch"
