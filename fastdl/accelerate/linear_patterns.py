"""Linear → [activation] → [Dropout] in a traced forward, and a Linear alone: what is replaced, what not, and why."""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from .. import nn as fused_nn
from ..ops.linear.activations import ACTIVATIONS, activate
from . import activations, linear_calls
from .guards import Guards
from .patterns import Chain, Whole, module_refusal, parameter_refusal

# The attributes a fused call does not read itself, by the class of the module it stands for.
_WATCHED = {nn.Linear: (), **activations.WATCHED, nn.Dropout: ()}


@dataclass
class LinearPattern(Chain):
    """A Linear call and the calls after it that one fused call can replace, unless `refusal` says no."""

    activation: str | None = None
    dropout_p: float = 0.0  # of a call of F.dropout

    @property
    def dropout(self) -> nn.Dropout | None:
        """The module, if the dropout is one."""
        node = self.after("dropout")
        return self.modules[node.target] if node is not None and node.op == "call_module" else None

    @property
    def measured(self) -> dict[str, nn.Module]:
        return {"": self.head}

    @property
    def description(self) -> str:
        shown = [activations.SHOWN[self.activation]] if self.activation else []
        return " → ".join(["Linear", *shown, *(["Dropout"] if "dropout" in self.kinds else [])])

    def fuse(self, graph: fx.Graph, guards: Guards) -> None:
        """Replace the calls in `graph`; `guards` get what the fused call takes for granted."""
        call, paths, options = linear_calls.linear_activation, (self.path,), {"activation": self.activation}
        if self.dropout is not None:
            call, paths = linear_calls.linear_activation_dropout, (self.path, self.after("dropout").target)
        elif self.dropout_p:
            options["dropout_p"] = self.dropout_p
        self.put(graph, call, paths, options, guards, _WATCHED)

    def compute(
        self,
        modules: dict[str, nn.Module],
        args: tuple,
        kwargs: Mapping[str, object],
        fused: bool,
        exact: bool,
    ) -> tuple[Tensor, None]:
        dropout, dropout_p = self.dropout, 0.0 if exact else self.dropout_p
        if not exact and dropout is not None and dropout.training:
            dropout_p = dropout.p
        if fused:
            return linear_calls.linear_activation(modules[""], args[0], self.activation, dropout_p), None
        y = modules[""](args[0])
        y = activate(y, self.activation)
        return (F.dropout(y, dropout_p) if dropout_p else y), None


def is_head(module: nn.Module) -> bool:
    """Whether a pattern can begin with a call of `module`."""
    # The output projection of nn.MultiheadAttention holds parameters and is never called.
    others = (fused_nn.Linear, NonDynamicallyQuantizableLinear)
    return isinstance(module, nn.Linear) and not isinstance(module, others)


def find(graph: fx.Graph, modules: Mapping[str, nn.Module]) -> list[LinearPattern]:
    """Every Linear call that an activation or a dropout follows, fusable or not."""
    patterns = []
    for node in graph.nodes:
        layer = modules.get(node.target) if node.op == "call_module" else None
        if layer is not None and is_head(layer):
            pattern = _follow(node, modules)
            if pattern.kinds:
                patterns.append(pattern)
    return patterns


def whole(module: nn.Module) -> Whole | None:
    """A Linear as it is; the op decides at each call whether its own kernel or torch's product runs."""
    if not is_head(module):
        return None
    refusal = _linear_refusal(module)
    if refusal is None and type(module) is not nn.Linear:
        refusal = f"{type(module).__name__} is a subclass of Linear"
    return Whole(module, fused_nn.Linear, "Linear as fastdl.nn.Linear", refusal)


def _follow(head: fx.Node, modules: Mapping[str, nn.Module]) -> LinearPattern:
    pattern = LinearPattern(str(head.target), [head], (), modules)
    for kind, read in (("activation", _activation), ("dropout", _dropout)):
        users = list(pattern.nodes[-1].users)
        found = next(((user, value) for user in users if (value := read(user, modules)) is not None), None)
        if found is None or (len(users) > 1 and pattern.kinds):
            continue
        if len(users) > 1:
            pattern.refusal = f"the output of {head.target} is used {len(users)} times"
        pattern.nodes.append(found[0])
        pattern.kinds = (*pattern.kinds, kind)
        setattr(pattern, *(("activation", found[1]) if kind == "activation" else ("dropout_p", found[1])))
    pattern.refusal = pattern.refusal or _refusal(pattern)
    return pattern


def _activation(node: fx.Node, modules: Mapping[str, nn.Module]) -> str | None:
    """The op's name of an activation, None for another call."""
    name = activations.of_call(node, modules)
    return name if name in ACTIVATIONS else None


def _dropout(node: fx.Node, modules: Mapping[str, nn.Module]) -> float | None:
    """The probability of a call of F.dropout, 0 where it does nothing; of a module 0, which is read at each call."""
    if node.op == "call_module":
        return 0.0 if isinstance(modules.get(node.target), nn.Dropout) else None
    if node.op != "call_function" or node.target is not F.dropout:
        return None
    given = inspect.signature(F.dropout).bind(*node.args, **node.kwargs)
    given.apply_defaults()
    p, training = given.arguments["p"], given.arguments["training"]
    if not isinstance(training, bool) or not isinstance(p, numbers.Real):
        return None
    return float(p) if training else 0.0


def _refusal(pattern: LinearPattern) -> str | None:
    if len(pattern.nodes[0].args) != 1:
        return "it is called with keyword arguments"
    others = (m for m in pattern.members.values() if m is not pattern.head)
    reasons = (module_refusal(module, _WATCHED) for module in others)
    return _linear_refusal(pattern.head) or next((reason for reason in reasons if reason), None)


def _linear_refusal(layer: nn.Linear) -> str | None:
    reason = module_refusal(layer, (nn.Linear,))
    if reason is not None:
        return reason
    if "weight" not in layer._parameters:
        return "the weight is not a Parameter of the Linear"
    return parameter_refusal(layer)
