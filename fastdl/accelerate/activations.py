"""Which calls in a traced forward are activations, by the names of the ops."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ..nn import plain_parts
from . import transformers_classes

MODULES = {**plain_parts.MODULES, nn.ReLU6: "relu6", nn.Hardswish: "hardswish"}
# nn.GELU and F.gelu have two names.
_FUNCTIONS = {
    **plain_parts.FUNCTIONS,
    F.relu_: "relu",
    torch.relu_: "relu",
    F.relu6: "relu6",
    F.hardswish: "hardswish",
    torch.tanh_: "tanh",
    torch.sigmoid_: "sigmoid",
}
_METHODS = {f"{name}{in_place}": name for name in ("relu", "tanh", "sigmoid") for in_place in ("", "_")}
# Functions whose second argument is `inplace`.
_WITH_IN_PLACE = ("relu", "relu6", "silu", "hardswish")
SHOWN = dict(
    relu="ReLU", relu6="ReLU6", gelu="GELU", gelu_tanh="GELU(tanh)", silu="SiLU", hardswish="Hardswish", tanh="Tanh",
    sigmoid="Sigmoid",
)  # fmt: skip
_WATCHED = {**dict.fromkeys(MODULES, ()), nn.GELU: ("approximate",), nn.ReLU6: ("min_val", "max_val")}


def watched() -> dict[type[nn.Module], tuple[str, ...]]:
    """The attributes a fused call does not read itself, by the class of the module it stands for."""
    return {**_WATCHED, **transformers_classes.watched()}


def of_call(node: fx.Node, modules: Mapping[str, nn.Module]) -> str | None:
    """The name of the activation that a node calls, None for another call."""
    if node.op == "call_module":
        return of_module(modules.get(node.target))
    if node.op == "call_method":
        return _METHODS.get(node.target) if len(node.args) == 1 and not node.kwargs else None
    if node.op != "call_function" or node.target not in _FUNCTIONS:
        return None
    name, options = _FUNCTIONS[node.target], dict(node.kwargs)
    options.pop("inplace", None)
    if name == "gelu" and options == {"approximate": "tanh"}:
        return "gelu_tanh"
    if name == "gelu" and options == {"approximate": "none"}:
        return name
    return None if options or len(node.args) > (2 if name in _WITH_IN_PLACE else 1) else name


def of_module(module: nn.Module | None) -> str | None:
    """The name of the activation that a module is, None for another module."""
    name = next((name for kind, name in MODULES.items() if isinstance(module, kind)), None)
    if name is None:
        return transformers_classes.activation(module)
    if name == "relu6" and (module.min_val, module.max_val) != (0, 6):  # it is an nn.Hardtanh
        return None
    return "gelu_tanh" if name == "gelu" and module.approximate == "tanh" else name


def piece(y: Tensor, activation: str | None) -> Tensor | None:
    """Which piece of an activation with kinks an output comes from: near them rounding decides a gradient."""
    if activation not in ("relu", "relu6", "hardswish"):
        return None
    highest = dict(relu=torch.inf, relu6=6.0, hardswish=3.0)[activation]
    return torch.where(y >= highest, 1, torch.where(y > 0 if activation != "hardswish" else y != 0, 0, -1))
