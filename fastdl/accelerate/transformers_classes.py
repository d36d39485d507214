"""Modules of Hugging Face's transformers that compute what an op does, by their classes if the library is loaded."""

from __future__ import annotations

import functools
import sys

import torch.nn.functional as F
from torch import nn

# By class what it computes, or the attribute that does. A release may lack some, or have one under two names.
_ACTIVATIONS = {
    "GELUActivation": "act",
    "GELUTanh": "act",
    "PytorchGELUTanh": "gelu_tanh",
    "NewGELUActivation": "gelu_tanh",
    "SiLUActivation": "silu",
}
_GELU_TANH = (F.gelu, (), {"approximate": "tanh"})
_FORMULAS = {"_gelu_python": "gelu", "_gelu_tanh_python": "gelu_tanh"}


def activation(module: nn.Module | None) -> str | None:
    """The name of the activation that a module is, None for another module."""
    for kind, computed in _activations().items():
        if isinstance(module, kind):
            return _of_act(getattr(module, "act", None), kind) if computed == "act" else computed
    return None


def watched() -> dict[type[nn.Module], tuple[str, ...]]:
    """The attributes that say what an activation computes, by its class."""
    return {kind: ("act",) if computed == "act" else () for kind, computed in _activations().items()}


def transposed_linear() -> tuple[type[nn.Module], ...]:
    """Conv1D: x weight + bias, the weight [in_features, out_features]."""
    kind = _class("transformers.pytorch_utils", "Conv1D")
    return () if kind is None else (kind,)


def _activations() -> dict[type[nn.Module], str]:
    found: dict[type[nn.Module], str] = {}
    for name, computed in _ACTIVATIONS.items():
        kind = _class("transformers.activations", name)
        if kind is not None:
            found.setdefault(kind, computed)
    return found


def _class(file: str, name: str) -> type[nn.Module] | None:
    """The class, if its file is loaded and it is not another's, nor its forward."""
    kind = getattr(sys.modules.get(file), name, None)
    if not isinstance(kind, type) or not issubclass(kind, nn.Module):
        return None
    return kind if kind.__module__ == getattr(kind.forward, "__module__", None) == file else None


def _of_act(act: object, kind: type[nn.Module]) -> str | None:
    """What the function of a module computes: torch's, or a formula of its class."""
    if isinstance(act, functools.partial):
        return "gelu_tanh" if (act.func, act.args, act.keywords) == _GELU_TANH else None
    if act is F.gelu:
        return "gelu"
    formula = getattr(act, "__func__", None)
    own = {name: getattr(kind, name, None) for name in _FORMULAS}
    return next((_FORMULAS[name] for name in own if formula is not None and formula is own[name]), None)
