"""Modules of other libraries that are a BatchNorm2d and an activation in one."""

from __future__ import annotations

import sys

from torch import nn

from . import activations


def classes() -> tuple[type[nn.BatchNorm2d], ...]:
    """Those whose library is loaded: their forward is batch_norm, the child `drop`, the child `act`."""
    library = sys.modules.get("timm.layers.norm_act")
    found = getattr(library, "BatchNormAct2d", None)
    return (found,) if isinstance(found, type) and issubclass(found, nn.BatchNorm2d) else ()


def is_one(module: nn.Module | None) -> bool:
    return isinstance(module, classes())


def parts(module: nn.BatchNorm2d) -> dict[str, nn.Module]:
    """The children that compute, by name."""
    return {name: child for name, child in module.named_children() if name in ("drop", "act")}


def refusal(module: nn.BatchNorm2d) -> str | None:
    """Why it is not a normalisation and an activation that the op knows."""
    kind, found = type(module).__name__, parts(module)
    if module._modules.keys() != {"drop", "act"} or not all(found.values()):
        return f"{kind} has other parts than drop and act"
    if type(found["drop"]) is not nn.Identity:
        return f"{kind} drops by {type(found['drop']).__name__}"
    if type(found["act"]) is not nn.Identity and activations.of_module(found["act"]) is None:
        return f"no kernel for {type(found['act']).__name__} after a normalisation"
    return None


def activation(module: nn.BatchNorm2d) -> str | None:
    """The name of its activation, if it has one."""
    return activations.of_module(module._modules.get("act"))
