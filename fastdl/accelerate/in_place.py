"""What is changed in place in a traced forward: the operators that do so, and where a value stays what it was."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping

from torch import fx, nn
from torch._ops import OpOverload, OpOverloadPacket

from .. import nn as fused_nn

_OPERATORS = (
    "iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul", "iand", "ior", "ixor", "ilshift",
    "irshift",
)  # fmt: skip
# Of operator's functions, those that a forward is likely to call and that write nothing.
_PURE = {"add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "neg", "matmul", "getitem"}
_CUSTOM = (OpOverload, OpOverloadPacket)
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
    # others may keep what they are given, or give what they keep
    given = value.all_input_nodes
    return (
        _is_known(value, modules) and bool(given) and all(is_private(each, value, modules) for each in given)
    )


def may_write_state(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a node may change parameters or buffers of other layers."""
    if not node.op.startswith("call_"):
        return False
    if not _is_known(node, modules):
        return True
    called = node.op == "call_module"
    return not called and may_write(node, modules) and any(map(_reads_state, node.all_input_nodes))


def _reads_state(node: fx.Node) -> bool:
    return node.op == "get_attr" or any(map(_reads_state, node.all_input_nodes))


def _is_known(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a call is of torch's or our own code, with nothing of others in it."""
    if node.op == "call_method":
        return True
    if node.op == "call_module":
        return is_plain(modules[node.target])
    return (
        node.target is getattr
        or node.target in FUNCTIONS.values()
        or _is_operator(node.target)
        or (_is_of_torch(node.target) and not isinstance(node.target, _CUSTOM))
    )


def may_write(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a node may change one of its arguments in place."""
    if not node.op.startswith("call_"):
        return False
    if node.op == "call_module":
        return not writes_nothing(modules[node.target])
    given = (*node.args, node.kwargs.get("inplace"))
    if any(each is True for each in given) or isinstance(given[-1], fx.Node) or "out" in node.kwargs:
        return True
    if isinstance(node.target, OpOverload):
        return node.target._schema.is_mutable
    if isinstance(node.target, OpOverloadPacket):
        overloads = (getattr(node.target, name) for name in node.target.overloads())
        return any(each._schema.is_mutable for each in overloads)
    name = node.target if node.op == "call_method" else node.target.__name__
    if node.op == "call_function" and _is_operator(node.target):
        return name not in _PURE
    known = node.op == "call_method" or node.target is getattr or _is_of_torch(node.target)
    return not known or name.endswith("_")


def writes_nothing(module: nn.Module) -> bool:
    """Whether a module, with all in it, is torch's or ours and does not work in place."""
    return is_plain(module) and not any(getattr(each, "inplace", False) for each in module.modules())


def is_plain(module: nn.Module) -> bool:
    """Whether a module, with all in it, is torch's or ours, without hooks."""
    return all(
        type(each).__module__.startswith(("torch.nn.modules.", "fastdl.nn."))
        and not (each._forward_hooks or each._forward_pre_hooks)
        for each in module.modules()
    )


def _is_operator(function: Callable) -> bool:
    return getattr(function, "__module__", None) in ("_operator", "operator")


def _is_of_torch(function: Callable) -> bool:
    return str(getattr(function, "__module__", None)).partition(".")[0] == "torch"
