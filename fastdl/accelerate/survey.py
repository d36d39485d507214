"""Everything in a model that could be replaced, where, and why not."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import nn

from ..nn import ConvReLU2d
from . import families, owner, sequential
from .conv_patterns import ConvPattern
from .purity import Untraceable
from .tracing import Trace


@dataclass
class Candidate:
    """A module whose calls in one forward could be fused, unless `refusal` says no."""

    name: str  # of the module that holds the parameters, from the model
    module: nn.Module
    owner: nn.Module  # whose forward calls it
    path: str  # of the module, from the owner
    patterns: dict[bool, ConvPattern]  # by training value
    refusal: str | None
    swaps: bool  # by sequential.swap, else by owner.fuse
    description: str

    def apply(self) -> None:
        if self.swaps:
            sequential.swap(self.owner, self.patterns[True])
        else:
            owner.fuse(self.owner, owner.fused_paths(self.owner) | {self.path})


class Survey:
    """The candidates of a model in the order of its modules; `model` is not changed."""

    def __init__(self, model: nn.Module, names: Iterable[str]) -> None:
        self.model, self.names = model, tuple(names)
        self.module_names = {id(module): name for name, module in model.named_modules()}
        self.owners = [module for module in model.modules() if _is_owner(module)]
        self.traces = {id(module): owner.traces(module) for module in self.owners}
        self.callers = self._callers()
        # What is below a forward that cannot be read.
        unread = (module for module in self.owners if len(self._readable(module)) < 2)
        self.unwatched = {id(inner) for module in unread for inner in module.modules() if inner is not module}
        self.places = Counter(id(child) for module in model.modules() for child in module._modules.values())
        self.candidates = [candidate for module in self.owners for candidate in self._of(module)]

    def unmatched(self) -> Iterator[str]:
        """Names of convolutions that are no candidates and not fused."""
        if "conv" not in self.names:
            return
        known = {id(candidate.module) for candidate in self.candidates}
        for module in self.owners:
            paths = owner.fused_paths(module)
            known |= {id(inner) for path, inner in module.named_modules() if path in paths}
        for name, module in self.model.named_modules():
            if _is_convolution(module) and id(module) not in known:
                yield name

    def _callers(self) -> dict[int, set[int]]:
        """For each module, the owners whose forward calls it."""
        callers: dict[int, set[int]] = defaultdict(set)
        for module in self.owners:
            for trace in self._readable(module).values():
                for node in trace.graph.nodes:
                    if node.op == "call_module":
                        callers[id(trace.modules[node.target])].add(id(module))
        return callers

    def _readable(self, module: nn.Module) -> dict[bool, Trace]:
        return {mode: trace for mode, trace in self.traces[id(module)].items() if isinstance(trace, Trace)}

    def _of(self, module: nn.Module) -> Iterator[Candidate]:
        traces = self._readable(module)
        if not traces and "conv" in self.names:
            yield from self._unreadable(module)
        by_path: dict[str, dict[bool, list[ConvPattern]]] = defaultdict(dict)
        for mode, trace in traces.items():
            for pattern in families.find(trace.graph, trace.modules, self.names):
                by_path[pattern.path].setdefault(mode, []).append(pattern)
        for path, patterns in by_path.items():
            if path not in owner.fused_paths(module):
                yield self._candidate(module, path, patterns)

    def _unreadable(self, module: nn.Module) -> Iterator[Candidate]:
        reason = f"{_forward(module)} cannot be traced: {self.traces[id(module)][True]}"
        for path, child in _own_convolutions(module):
            yield Candidate(self.module_names[id(child)], child, module, path, {}, reason, False, "Conv2d")

    def _candidate(self, module: nn.Module, path: str, patterns: dict[bool, list[ConvPattern]]) -> Candidate:
        usable = {mode: [call for call in calls if call.refusal is None] for mode, calls in patterns.items()}
        usable = {mode: calls for mode, calls in usable.items() if calls}
        first = next(calls[0] for calls in (usable or patterns).values())
        refusal, swaps = first.refusal, False
        if refusal is None:
            swaps = self._can_swap(module, patterns, first)
            refusal = None if swaps else owner.refusal(owner.base_class(module))
        return Candidate(
            name=self.module_names[id(first.conv)],
            module=first.conv,
            owner=module,
            path=path,
            patterns={mode: calls[0] for mode, calls in usable.items()},
            refusal=refusal,
            swaps=swaps,
            description=f"{first.description} in {_forward(module)}" + self._restriction(module, usable),
        )

    def _can_swap(
        self, module: nn.Module, patterns: dict[bool, list[ConvPattern]], first: ConvPattern
    ) -> bool:
        # Layers that are, or may be, called one by one from elsewhere stay what they are.
        alone = not any(self.callers[id(member)] - {id(module)} for member in first.members.values())
        return (
            sequential.runs_in_order(owner.base_class(module))
            and sequential.can_swap(first)
            and len(patterns[True]) == 1
            and self.places[id(first.conv)] == 1
            and alone
            and id(module) not in self.unwatched
        )

    def _restriction(self, module: nn.Module, usable: dict[bool, list[ConvPattern]]) -> str:
        if len(usable) != 1:
            return ""
        mode, other = ("training", False) if True in usable else ("eval", True)
        reason = self.traces[id(module)][other]
        return f"; in {mode} only" + (f": {reason}" if isinstance(reason, Untraceable) else "")


def _is_owner(module: nn.Module) -> bool:
    """Whether a module's forward may call convolutions: a Sequential, or code outside of torch."""
    kind = owner.base_class(module)
    assigned = "_fastdl_base" in type(module).__dict__ or kind is type(module)
    return (
        assigned  # not below a class that another library made of ours
        and hasattr(kind.forward, "__code__")
        and (sequential.runs_in_order(kind) or _is_written_outside_torch(kind))
        and any(_is_convolution(inner) for inner in module.modules())
    )


def _is_written_outside_torch(kind: type) -> bool:
    return kind.forward.__module__.partition(".")[0] not in ("torch", "fastdl")


def _is_convolution(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and not isinstance(module, ConvReLU2d)


def _own_convolutions(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Conv2d]]:
    """Convolutions of a module, also in its containers, but not those of its submodules with a forward."""
    for name, child in module.named_children():
        if _is_convolution(child):
            yield prefix + name, child
        elif isinstance(child, (nn.ModuleList, nn.ModuleDict)):
            yield from _own_convolutions(child, f"{prefix}{name}.")


def _forward(module: nn.Module) -> str:
    kind = owner.base_class(module)
    return kind.__name__ if sequential.runs_in_order(kind) else f"{kind.__name__}.forward"
