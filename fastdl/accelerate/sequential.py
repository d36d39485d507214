"""Patterns inside an nn.Sequential: the convolution becomes the fused module, what it absorbed an Identity.

The class of the convolution is assigned, so it stays the same object with the same Parameters, and indices
and state_dict keys hold. What it was is kept in its `__dict__`.
"""

from __future__ import annotations

from torch import nn

from ..nn import ConvReLU2d, ConvReLUMaxPool2d
from .classes import take_back
from .conv_patterns import ConvPattern

_CLASS, _MODULE = "_fastdl_class", "_fastdl_module"


def runs_in_order(kind: type) -> bool:
    """Whether instances do exactly what nn.Sequential does."""
    sequential = nn.Sequential
    return (
        issubclass(kind, sequential)
        and kind.forward is sequential.forward
        and kind.__iter__ is sequential.__iter__
        and kind.__call__ is sequential.__call__
    )


def can_swap(pattern: ConvPattern) -> bool:
    """Whether the fused module can take the places: layers of the Sequential itself, no BatchNorm."""
    layers = all(node.op == "call_module" and "." not in node.target for node in pattern.nodes)
    return layers and pattern.norm is None and type(pattern.conv) is nn.Conv2d


def swap(sequential: nn.Sequential, pattern: ConvPattern) -> None:
    """Put the fused module and the Identities in place."""
    # By position: a layer that is there twice has one name in the trace.
    names = list(sequential._modules)
    at = names.index(pattern.path) + 1
    for name in names[at : at + len(pattern.kinds)]:
        absorbed = sequential._modules[name]
        identity = nn.Identity()
        identity.training = absorbed.training
        identity.__dict__[_MODULE] = absorbed  # not a submodule: it has no state
        sequential._modules[name] = identity
    conv = pattern.conv
    conv.__dict__[_CLASS] = type(conv)
    if pattern.pool:
        conv.__dict__.update(pattern.pool, return_indices=False)
    conv.__class__ = ConvReLUMaxPool2d if pattern.pool else ConvReLU2d


def is_swapped(module: nn.Module) -> bool:
    return _CLASS in module.__dict__


def restore(module: nn.Module) -> None:
    """Undo what `swap` did to `module` and to the places of its children."""
    for name, child in module._modules.items():
        absorbed = None if child is None else child.__dict__.get(_MODULE)
        if absorbed is not None:
            absorbed.training = child.training
            module._modules[name] = absorbed
    if is_swapped(module):
        assigned = ConvReLUMaxPool2d if isinstance(module, ConvReLUMaxPool2d) else ConvReLU2d
        take_back(module, assigned, module.__dict__.pop(_CLASS))
        for name in _POOL_ATTRIBUTES:
            module.__dict__.pop(name, None)


_POOL_ATTRIBUTES = (
    "pool_size",
    "pool_stride",
    "pool_padding",
    "pool_dilation",
    "ceil_mode",
    "return_indices",
)
