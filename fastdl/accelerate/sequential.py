"""Patterns inside an nn.Sequential: the head becomes the fused module, what it absorbed an Identity.

So indices and state_dict keys hold.
"""

from __future__ import annotations

from torch import nn

from .assignment import assign, take_assigned_back
from .patterns import Chain

_MODULE = "_fastdl_module"


def runs_in_order(kind: type) -> bool:
    """Whether instances do exactly what nn.Sequential does."""
    sequential = nn.Sequential
    return (
        issubclass(kind, sequential)
        and kind.forward is sequential.forward
        and kind.__iter__ is sequential.__iter__
        and kind.__call__ is sequential.__call__
    )


def can_swap(pattern: Chain) -> bool:
    """Whether a fused module can take the places: layers of the Sequential itself, and a class for them."""
    layers = all(node.op == "call_module" and "." not in node.target for node in pattern.nodes)
    return layers and pattern.replacement() is not None


def swap(sequential: nn.Sequential, pattern: Chain) -> None:
    """Put the fused module and the Identities in place."""
    replacement = pattern.replacement()  # asked before the places change
    # By position: a layer that is there twice has one name in the trace.
    names = list(sequential._modules)
    at = names.index(pattern.path) + 1
    for name in names[at : at + len(pattern.kinds)]:
        absorbed = sequential._modules[name]
        identity = nn.Identity()
        identity.training = absorbed.training
        identity.__dict__[_MODULE] = absorbed  # not a submodule: it has no state
        sequential._modules[name] = identity
    assign(pattern.head, replacement)


def restore(module: nn.Module) -> None:
    """Undo what `swap` did to `module` and to the places of its children."""
    for name, child in module._modules.items():
        absorbed = None if child is None else child.__dict__.get(_MODULE)
        if absorbed is not None:
            absorbed.training = child.training
            module._modules[name] = absorbed
    take_assigned_back(module)
