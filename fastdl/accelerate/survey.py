"""Everything in a model that could be replaced, where, and why not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from torch import jit, nn

from . import dropout_modules, families, owner
from .assignment import assign, is_assigned
from .attention_calls import Calls
from .patterns import Chain, Pattern
from .purity import Untraceable
from .tracing import Trace


@dataclass
class Candidate:
    """A module whose calls could be fused, unless `refusal` says no."""

    name: str  # of the module that holds the parameters, from the model
    module: nn.Module
    owner: nn.Module  # whose forward calls it; a module replaced as it is: itself
    path: str  # of the module, from the owner
    patterns: dict[bool, Pattern]  # by training value
    refusal: str | None
    way: str  # "fuse" or "call" in the owner's forward, "assign" a class
    description: str


def apply(candidates: list[Candidate]) -> None:
    """Replace those of one owner."""
    changed = candidates[0].owner
    if candidates[0].way == "assign":
        assign(changed, candidates[0].patterns[True].kind)
        return
    paths = owner.fused_paths(changed) | {each.path for each in candidates if each.way == "fuse"}
    attention = owner.calls_attention(changed) or any(each.way == "call" for each in candidates)
    owner.fuse(changed, paths, attention)


def by_owner(candidates: Iterable[Candidate]) -> list[list[Candidate]]:
    """What is applied at once: a class of a module's own is made for all that its forward calls.

    What is replaced as it is comes first: the forward is read with it.
    """
    groups: dict[tuple[int, bool], list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        groups[id(candidate.owner), candidate.way == "assign"].append(candidate)
    return sorted(groups.values(), key=lambda group: group[0].way != "assign")


class Survey:
    """The candidates of a model in the order of its modules; `model` is not changed."""

    def __init__(self, model: nn.Module, names: Iterable[str]) -> None:
        self.model, self.names = model, tuple(names)
        self.families = families.of(self.names)
        self.module_names = {id(module): name for name, module in model.named_modules()}
        self.owners = [module for module in model.modules() if self._is_owner(module)]
        self.traces = {id(module): owner.traces(module) for module in self.owners}
        chains = [candidate for module in self.owners for candidate in self._of(module)]
        taken = {id(c.module) for c in chains if c.refusal is None}
        taken |= self._fused() | self._dropouts_in_chains()
        wholes = list(self._wholes(taken))
        chains = list(_beside(chains, wholes, taken))
        order = {name: i for i, name in enumerate(self.module_names.values())}
        found = [*chains, *wholes, *(self._attention_calls() if "attention" in self.names else ())]
        self.candidates = sorted(found, key=lambda candidate: order[candidate.name])

    def unmatched(self) -> Iterator[tuple[nn.Module, str]]:
        """Modules that begin no chain, are not replaced and not fused, and why they are kept."""
        known = {id(candidate.module) for candidate in self.candidates} | self._fused()
        for family in self.families:
            if family.unmatched:
                for module in self.model.modules():
                    if family.is_head(module) and id(module) not in known:
                        yield module, family.unmatched

    def _fused(self) -> set[int]:
        """The modules that owners call fused already."""
        return {
            id(inner)
            for module in self.owners
            for path, inner in module.named_modules()
            if path in owner.fused_paths(module)
        }

    def _dropouts_in_chains(self) -> set[int]:
        """What stays torch's, since its owner's fused calls draw for it."""
        traces = [trace for module in self.owners for trace in self._readable(module).values()]
        found = (families.find(trace.graph, trace.modules, self.names) for trace in traces)
        fused = [chain for chains in found for chain in chains if chain.refusal is None]
        return dropout_modules.only_behind_others(traces, fused)

    def _wholes(self, taken: set[int]) -> Iterator[Candidate]:
        """The modules to replace as they are: those that no chain takes."""
        for name, module in self.model.named_modules():
            found = [family.whole(module) for family in self.families if family.whole is not None]
            pattern = next((whole for whole in found if whole is not None), None)
            if pattern is not None and id(module) not in taken and not is_assigned(module):
                patterns = {True: pattern, False: pattern}
                yield Candidate(
                    name, module, module, "", patterns, pattern.refusal, "assign", pattern.description
                )

    def _attention_calls(self) -> Iterator[Candidate]:
        for name, module in self.model.named_modules():
            kind = owner.base_class(module)
            if not self._has_its_class(module) or not _is_written_outside_torch(kind):
                continue
            calls = Calls(module, kind, owner.refusal(kind))
            if calls.names and not owner.calls_attention(module):
                patterns = {True: calls, False: calls}
                yield Candidate(name, module, module, "", patterns, calls.refusal, "call", calls.description)

    def _readable(self, module: nn.Module) -> dict[bool, Trace]:
        return {mode: trace for mode, trace in self.traces[id(module)].items() if isinstance(trace, Trace)}

    def _of(self, module: nn.Module) -> Iterator[Candidate]:
        traces = self._readable(module)
        if not traces:
            yield from self._unreadable(module)
        by_path: dict[str, dict[bool, list[Chain]]] = defaultdict(dict)
        for mode, trace in traces.items():
            for pattern in families.find(trace.graph, trace.modules, self.names):
                by_path[pattern.path].setdefault(mode, []).append(pattern)
        for path, patterns in by_path.items():
            if path not in owner.fused_paths(module):
                yield self._candidate(module, path, patterns)

    def _unreadable(self, module: nn.Module) -> Iterator[Candidate]:
        reason = f"{_forward(module)} cannot be traced: {self.traces[id(module)][True]}"
        for family in self.families:
            if family.unmatched:
                for path, child in _own_heads(module, family):
                    if path in owner.fused_paths(module):
                        continue
                    name, kept = self.module_names[id(child)], "what follows it"
                    yield Candidate(name, child, module, path, {}, reason, "fuse", kept)

    def _candidate(self, module: nn.Module, path: str, patterns: dict[bool, list[Chain]]) -> Candidate:
        usable = {mode: [call for call in calls if call.refusal is None] for mode, calls in patterns.items()}
        usable = {mode: calls for mode, calls in usable.items() if calls}
        first = next(calls[0] for calls in (usable or patterns).values())
        refusal = first.refusal or owner.refusal(owner.base_class(module))
        return Candidate(
            name=self.module_names[id(first.head)],
            module=first.head,
            owner=module,
            path=path,
            patterns={mode: calls[0] for mode, calls in usable.items()},
            refusal=refusal,
            way="fuse",
            description=f"{first.description} in {_forward(module)}" + self._restriction(module, usable),
        )

    def _restriction(self, module: nn.Module, usable: dict[bool, list[Chain]]) -> str:
        if len(usable) != 1:
            return ""
        mode, other = ("training", False) if True in usable else ("eval", True)
        reason = self.traces[id(module)][other]
        return f"; in {mode} only" + (f": {reason}" if isinstance(reason, Untraceable) else "")

    def _is_owner(self, module: nn.Module) -> bool:
        """Whether a module's forward may call a chain's head: a Sequential, or code outside of torch."""
        kind = owner.base_class(module)
        return (
            self._has_its_class(module)
            and hasattr(kind.forward, "__code__")
            and (owner.runs_in_order(kind) or _is_written_outside_torch(kind))
            and any(family.is_head(inner) for inner in module.modules() for family in self.families)
        )

    def _has_its_class(self, module: nn.Module) -> bool:
        """Not below a class that another library made of ours, nor compiled by TorchScript, which has no code."""
        if isinstance(module, jit.ScriptModule):
            return False
        return "_fastdl_base" in type(module).__dict__ or owner.base_class(module) is type(module)


def _beside(
    chains: Iterable[Candidate], wholes: Iterable[Candidate], taken: Iterable[int]
) -> Iterator[Candidate]:
    """The chains; one that is kept says which it is where its head has another row, and is left out if it says that."""
    others = dict.fromkeys(taken) | {id(whole.module): whole.refusal for whole in wholes}
    for chain in chains:
        if chain.refusal is None or id(chain.module) not in others:
            yield chain
        elif chain.refusal != others[id(chain.module)]:
            yield replace(chain, refusal=f"{chain.description}: {chain.refusal}")


def _is_written_outside_torch(kind: type) -> bool:
    """Whether a forward is a model's own, not that of a layer of torch or of ours."""
    return not f"{kind.forward.__module__}.".startswith(("torch.", "fastdl.nn."))


def _own_heads(
    module: nn.Module, family: families.Family, prefix: str = ""
) -> Iterator[tuple[str, nn.Module]]:
    """A family's heads in a module, also in its containers, but not in its submodules with a forward."""
    for name, child in module.named_children():
        if family.is_head(child):
            yield prefix + name, child
        elif isinstance(child, (nn.ModuleList, nn.ModuleDict)):
            yield from _own_heads(child, family, f"{prefix}{name}.")


def _forward(module: nn.Module) -> str:
    kind = owner.base_class(module)
    return kind.__name__ if owner.runs_in_order(kind) else f"{kind.__name__}.forward"
