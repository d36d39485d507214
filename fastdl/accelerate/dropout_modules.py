"""nn.Dropout, replaced as it is, wherever it is called; but not one that a Linear's fused call draws for alone."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from .. import nn as fused_nn
from .patterns import Chain, Whole, module_refusal
from .tracing import Trace


def whole(module: nn.Module) -> Whole | None:
    """The module if it is an nn.Dropout that drops something."""
    if not isinstance(module, nn.Dropout) or isinstance(module, fused_nn.Dropout) or not module.p:
        return None
    return Whole(module, fused_nn.Dropout, "Dropout as fastdl.nn.Dropout", _refusal(module))


def only_behind_others(traces: Iterable[Trace], chains: Iterable[Chain]) -> set[int]:
    """The ids of the dropouts that these forwards call nowhere but in one of the chains, which are fused."""
    inside = {node for chain in chains for node in chain.nodes}
    called = {True: set(), False: set()}
    for trace in traces:
        for node in trace.graph.nodes:
            module = trace.modules.get(node.target) if node.op == "call_module" else None
            if isinstance(module, nn.Dropout):
                called[node in inside].add(id(module))
    return called[True] - called[False]


def _refusal(module: nn.Dropout) -> str | None:
    reason = module_refusal(module, (nn.Dropout,))
    if reason is not None:
        return reason
    if type(module) is not nn.Dropout:
        return f"{type(module).__name__} is a subclass of Dropout"
    return "it drops in place, which only torch does" if module.inplace else None
