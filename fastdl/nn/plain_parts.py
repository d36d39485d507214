"""Whether a module inside another is plain: exactly of a kind, and nobody watches or changed what it computes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FUNCTIONS = {
    F.relu: "relu",
    torch.relu: "relu",
    F.gelu: "gelu",
    F.silu: "silu",
    F.tanh: "tanh",
    torch.tanh: "tanh",
    F.sigmoid: "sigmoid",
    torch.sigmoid: "sigmoid",
}
MODULES = {nn.ReLU: "relu", nn.GELU: "gelu", nn.SiLU: "silu", nn.Tanh: "tanh", nn.Sigmoid: "sigmoid"}


def plain(module: object, *kinds: type[nn.Module]) -> bool:
    """Whether it is a module exactly of one of these kinds that computes what it does, and nobody watches it."""
    kind = type(module)
    # somebody's forward in the class comes from another file
    if kind not in kinds or getattr(kind.forward, "__module__", None) != kind.__module__:
        return False
    own = module.__dict__  # attributes of a module are found in 1 us, these in 0.1
    watched = (
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
    )
    return not watched and "forward" not in own


def parameters_of(
    module: object, kinds: tuple[type[nn.Module], ...], *names: str
) -> list[Tensor | None] | None:
    """What a plain module holds under these names; None if it is not plain, one is no Parameter or is being trained."""
    if not plain(module, *kinds):
        return None
    own, trained = module.__dict__["_parameters"], torch.is_grad_enabled()
    found = []
    for name in names:
        t = own.get(name, module)
        if t is not None and (type(t) is not nn.Parameter or (trained and t.requires_grad)):
            return None
        found.append(t)
    return found


def activation_name(activation: object) -> str | None:
    """What `fastdl.ops.linear` calls an activation, if it knows it."""
    if not isinstance(activation, nn.Module):
        try:
            return FUNCTIONS.get(activation)
        except TypeError:  # it has no hash
            return None
    if not plain(activation, *MODULES):
        return None
    name = MODULES[type(activation)]
    return "gelu_tanh" if name == "gelu" and activation.approximate == "tanh" else name


def watches_every_module() -> bool:
    """Whether somebody registered a hook for all modules."""
    shared = nn.modules.module
    return bool(
        shared._global_forward_hooks
        or shared._global_forward_pre_hooks
        or shared._global_backward_hooks
        or shared._global_backward_pre_hooks
    )
