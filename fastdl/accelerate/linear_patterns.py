"""Linear → [activation] → [Dropout] in a traced forward, and one of them alone: what is replaced, what not, and why."""

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
from . import activations, dropout_modules, linear_calls, transformers_classes
from .guards import Guards
from .patterns import Chain, Whole, module_refusal, parameter_refusal


@dataclass
class LinearPattern(Chain):
    """A Linear call and the calls after it that one fused call can replace, unless `refusal` says no."""

    activation: str | None = None
    dropout_p: float = 0.0  # of a call of F.dropout

    @property
    def dropout(self) -> nn.Dropout | None:
        """The module, if the dropout is one."""
        return self._module("dropout")

    def _module(self, kind: str) -> nn.Module | None:
        """What is called after the head, if that is a module."""
        node = self.after(kind)
        return self.modules[node.target] if node is not None and node.op == "call_module" else None

    @property
    def measured(self) -> dict[str, nn.Module]:
        return {"": self.head}

    @property
    def description(self) -> str:
        shown = [activations.SHOWN[self.activation]] if self.activation else []
        head = "Linear" if isinstance(self.head, nn.Linear) else "Conv1D"
        return " → ".join([head, *shown, *(["Dropout"] if "dropout" in self.kinds else [])])

    def fuse(self, graph: fx.Graph, guards: Guards) -> None:
        """Replace the calls in `graph`; `guards` get what the fused call takes for granted."""
        call, paths, options = linear_calls.linear_activation, (self.path,), self._options
        if self.dropout is not None:
            call, paths = linear_calls.linear_activation_dropout, (self.path, self.after("dropout").target)
        elif self.dropout_p:
            options["dropout_p"] = self.dropout_p
        self.put(graph, call, paths, options, guards, _watched())

    @property
    def _options(self) -> dict[str, object]:
        """What the fused call takes that is constant."""
        transposed = {} if isinstance(self.head, nn.Linear) else {"transposed": True}
        return {"activation": self.activation, **transposed}

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
            y = linear_calls.linear_activation(modules[""], args[0], dropout_p=dropout_p, **self._options)
            return y, None
        y = modules[""](args[0])
        called = self._module("activation")
        y = activate(y, self.activation) if called is None else called(y)
        return (F.dropout(y, dropout_p) if dropout_p else y), None


def _heads() -> tuple[type[nn.Module], ...]:
    return (nn.Linear, *transformers_classes.transposed_linear())


def _watched() -> dict[type[nn.Module], tuple[str, ...]]:
    """The attributes a fused call does not read itself, by the class of the module it stands for."""
    return {**dict.fromkeys(_heads(), ()), **activations.watched(), fused_nn.Dropout: (), nn.Dropout: ()}


def is_head(module: nn.Module) -> bool:
    """Whether a pattern can begin with a call of `module`."""
    # The output projection of nn.MultiheadAttention holds parameters and is never called.
    others = (fused_nn.Linear, NonDynamicallyQuantizableLinear)
    return isinstance(module, _heads()) and not isinstance(module, others)


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
    """A Linear or a Dropout as it is; the op decides at each call whether its own kernel or torch's runs."""
    if isinstance(module, nn.Dropout):
        return dropout_modules.whole(module)
    if not is_head(module) or not isinstance(module, nn.Linear):
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
    reasons = (module_refusal(module, _watched()) for module in others)
    return _linear_refusal(pattern.head) or next((reason for reason in reasons if reason), None)


def _linear_refusal(layer: nn.Module) -> str | None:
    reason = module_refusal(layer, _heads())
    if reason is not None:
        return reason
    if "weight" not in layer._parameters:
        return "the weight is not a Parameter of the Linear"
    return parameter_refusal(layer)
