"""What a family finds to replace: calls in a traced forward, or one module wherever it is called."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from .guards import Guards


class Pattern(Protocol):
    """Something one fused call can replace, unless `refusal` says no."""

    refusal: str | None

    @property
    def head(self) -> nn.Module:
        """The module that holds the parameters."""

    @property
    def measured(self) -> dict[str, nn.Module]:
        """The modules whose parameters get gradients, by what stands in front of their names in a message."""

    @property
    def description(self) -> str:
        """What is replaced, for the report."""

    def compute(
        self,
        modules: dict[str, nn.Module],
        args: tuple,
        kwargs: Mapping[str, object],
        fused: bool,
        exact: bool,
    ) -> tuple[object, Tensor | None]:
        """(the result, where each of its elements comes from if that is a choice), on twins of `measured`.

        Fused or as it is; `exact` leaves out what is random.
        """


@dataclass
class Chain:
    """A call of a module with parameters, and the calls after it, in one forward."""

    path: str  # of the head, from the owner of the forward
    nodes: list[fx.Node]  # the head's call first
    kinds: tuple[str, ...]  # of the nodes after it
    modules: Mapping[str, nn.Module]  # the owner's, by path
    refusal: str | None = None

    @property
    def head(self) -> nn.Module:
        return self.modules[self.path]

    @property
    def members(self) -> dict[str, nn.Module]:
        """The modules whose calls are replaced."""
        return {node.target: self.modules[node.target] for node in self.nodes if node.op == "call_module"}

    def after(self, kind: str) -> fx.Node | None:
        """The node of that kind."""
        return self.nodes[1 + self.kinds.index(kind)] if kind in self.kinds else None

    def put(
        self, graph: fx.Graph, call: object, arguments: tuple, options: dict[str, object], guards: Guards,
        watched: Mapping[type, tuple[str, ...]], place: fx.Node | None = None, more: tuple[fx.Node, ...] = (),
    ) -> None:  # fmt: skip
        """Replace the nodes by one call; `watched`: attributes the call takes for granted, by torch.nn class.

        It stands at `place`, where the nodes `more` are known, which it takes after the input.
        """
        # Else at the place of the head: its input may be changed in place further on.
        with graph.inserting_before(place or self.nodes[0]):
            paths = [graph.get_attr(path) for path in arguments]
            fused = graph.call_function(call, (*paths, self.nodes[0].args[0], *more), options)
        self.nodes[-1].replace_all_uses_with(fused)
        for node in reversed(self.nodes):
            graph.erase_node(node)
        for path, module in self.members.items():
            names = next(names for kind, names in watched.items() if isinstance(module, kind))
            guards.member(path, module, names)


def module_refusal(
    module: nn.Module,
    bases: Iterable[type],
    methods: tuple[str, ...] = ("__call__", "__getattr__", "forward"),
) -> str | None:
    """Why a call of a module is not what its torch.nn class among `bases` computes."""
    kind = type(module)
    if isinstance(module, nn.modules.lazy.LazyModuleMixin):
        return f"{kind.__name__} is not initialised yet: run the model once first"
    base = next(base for base in bases if isinstance(module, base))
    if parametrize.is_parametrized(module):
        return f"{base.__name__} is parametrized"
    if (
        module._forward_pre_hooks
        or module._forward_hooks
        or module._backward_pre_hooks
        or module._backward_hooks
    ):
        return f"{base.__name__} has hooks"
    same = all(getattr(kind, name, None) is getattr(base, name, None) for name in methods)
    if not same or "forward" in module.__dict__:
        return f"{kind.__name__} has a forward of its own"
    return None


def parameter_refusal(*modules: nn.Module) -> str | None:
    """Why parameters are not ordinary floating-point tensors."""
    for module in modules:
        for tensor in module._parameters.values():
            if tensor is not None and not _is_ordinary(tensor):
                return f"a parameter is a {type(tensor.data).__name__} of {tensor.dtype}"
    return None


def _is_ordinary(tensor: torch.Tensor) -> bool:
    # DTensor: what FSDP2 shards; in the forward it is an ordinary tensor.
    return tensor.is_floating_point() and type(tensor.data).__name__ in ("Tensor", "DTensor", "FakeTensor")


@dataclass
class Whole:
    """One module that a fastdl.nn class computes as it is, wherever it is called."""

    module: nn.Module
    kind: type[nn.Module]
    description: str
    refusal: str | None = None

    @property
    def head(self) -> nn.Module:
        return self.module

    @property
    def measured(self) -> dict[str, nn.Module]:
        return {"": self.module}

    def compute(
        self,
        modules: dict[str, nn.Module],
        args: tuple,
        kwargs: Mapping[str, object],
        fused: bool,
        exact: bool,
    ) -> tuple[object, None]:
        twin = modules[""]
        for name in ("dropout", "p"):  # of a recurrent layer, of a Dropout
            if hasattr(twin, name):
                setattr(twin, name, 0.0 if exact else getattr(self.module, name))
        twin.__class__ = self.kind if fused else type(self.module)
        return twin(*args, **kwargs), None
