"""What a forward computes with while it is traced, in place of tensors."""

from __future__ import annotations

import dis
import sys

from torch import fx

from .in_place import Augmented
from .purity import Untraceable


def _number(self: fx.Proxy, *_: object) -> int:
    raise Untraceable(f"it reads a number from {origin(self.node)}")


def _asked_by_torch() -> bool:
    """Whether the caller of the caller is torch's code: torch.fx asks its own stand-ins what a forward must not."""
    return sys._getframe(2).f_globals.get("__name__", "").partition(".")[0] == "torch"


class _StandIn(Augmented):
    """Says what a trace has no answer for in words of the forward, not in torch.fx's."""

    __int__ = __float__ = __index__ = __round__ = _number

    def __len__(self) -> int:
        raise Untraceable("it reads the length of a value")

    def __setitem__(self, index: object, value: object) -> None:
        raise Untraceable("it writes elements of a value")

    def __contains__(self, other: object) -> bool:
        raise Untraceable("it asks whether a value holds another")

    def __hash__(self) -> int:
        if _asked_by_torch():
            return id(self)
        raise Untraceable(f"it looks {origin(self.node)} up in a set or dict")

    def __repr__(self) -> str:
        if _asked_by_torch():
            return super().__repr__()
        raise Untraceable(f"it makes text of {origin(self.node)}")

    @property
    def __class__(self) -> type:
        """It does not answer to isinstance in a user's code either: it would say no to Tensor."""
        if _asked_by_torch():
            return type(self)
        raise Untraceable("the type of a value is asked for, as isinstance and torch.zeros do")

    def __getattr__(self, name: str) -> Attribute:
        if name in _MAYBE_NONE:
            raise Untraceable(f"it reads {name} of a value")
        reader = sys._getframe(1)
        if dis.opname[reader.f_code.co_code[reader.f_lasti]] not in ("LOAD_ATTR", "LOAD_METHOD"):
            raise Untraceable(f"it asks a value for {name} by hasattr or getattr")
        return Attribute(self, name)


class Value(_StandIn, fx.Proxy):
    """A tensor, or what is computed from one."""


class Attribute(_StandIn, fx.proxy.Attribute):
    """An attribute of a stand-in, as x.mT."""


# Attributes of tensors that may be None, which no stand-in is.
_MAYBE_NONE = ("grad", "grad_fn", "_base")
# What a tensor says of itself without its elements.
_METADATA = {
    *("shape", "size", "ndim", "dim", "numel", "nelement", "stride", "is_contiguous"),
    *("dtype", "is_floating_point", "is_complex", "device", "is_cuda", "get_device", "layout", "is_sparse"),
    *("requires_grad", "is_leaf", "is_quantized", "is_nested"),
}


def origin(node: fx.Node) -> str:
    """What a value was computed from: metadata alone, or more."""
    read, seen = set(), [node]
    for each in seen:
        called = each.args[1] if each.target is getattr else getattr(each.target, "__name__", each.target)
        if each.op in ("call_function", "call_method") and called in _METADATA:
            read.add(called)
        elif each.all_input_nodes:
            seen += [given for given in each.all_input_nodes if given not in seen]
        else:
            return "data"
    return f"a tensor's {' and '.join(sorted(read))}"
