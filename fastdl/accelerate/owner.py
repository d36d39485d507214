"""Fused calls inside a forward: a subclass of the owner's class, made for it, that runs traced graphs.

The subclass has one generated function for each `training` value, used while its guards hold; otherwise the
forward of the class runs. Where attention is called, it has the methods that do so, written again.
Nothing is added to the instance, so its state is what it was.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable

from torch import fx, nn

from ..nn.leaf import Leaf
from . import attention_calls, families
from .classes import take_back
from .doubles import can_be_subclassed
from .guards import Guards, define
from .purity import Untraceable
from .shared_classes import shared
from .tracing import Trace
from .unwritable import Unwritable


def refusal(kind: type) -> str | None:
    """Why instances of a class cannot be given a subclass of it."""
    if not can_be_subclassed(kind) or kind.__call__ is not nn.Module.__call__:
        return f"{kind.__name__} has a metaclass, __init_subclass__, __call__ or attribute access of its own"
    for name in ("__reduce__", "__reduce_ex__"):
        if getattr(kind, name) is not getattr(object, name):
            return f"{kind.__name__} defines {name}"
    return None


def traces(owner: nn.Module) -> dict[bool, Trace | Untraceable]:
    """The forward of the owner's own class by `training` value; one trace for both if it does not read it."""
    found: dict[bool, Trace | Untraceable] = {}
    kind = base_class(owner)
    if "forward" in owner.__dict__:
        return dict.fromkeys((True, False), Untraceable("the instance has a forward of its own"))
    if not can_be_subclassed(kind):
        return dict.fromkeys((True, False), Untraceable(refusal(kind)))
    for training in (True, False):
        try:
            found[training] = Trace(owner, kind, training)
        except Untraceable as reason:
            found[training] = reason
        if training and isinstance(found[True], Trace) and not found[True].reads_training:
            return {True: found[True], False: found[True]}
    return found


def runs_in_order(kind: type) -> bool:
    """Whether instances do exactly what nn.Sequential does."""
    sequential = nn.Sequential
    return (
        issubclass(kind, sequential)
        and kind.forward is sequential.forward
        and kind.__iter__ is sequential.__iter__
        and kind.__call__ is sequential.__call__
    )


def base_class(module: nn.Module) -> type:
    """The class the module had, or has, without fused calls."""
    return getattr(type(module), "_fastdl_base", type(module))


def fused_paths(module: nn.Module) -> frozenset[str]:
    """The convolutions, by path from the module, that its forward calls fused."""
    return getattr(type(module), "_fastdl_paths", frozenset())


def calls_attention(module: nn.Module) -> bool:
    """Whether its methods call fastdl's attention where they called torch's."""
    return getattr(type(module), "_fastdl_attention", False)


def fuse(owner: nn.Module, paths: Iterable[str], attention: bool) -> None:
    """Give `owner` a subclass of its class whose forward calls the modules at `paths`, and attention, fused.

    An owner that cannot be traced or written again (its class may have changed since it was saved) keeps its class.
    """
    base, paths = base_class(owner), frozenset(paths)
    methods = _attention_methods(base) if attention else {}
    forward = _traced(owner, base, paths, methods) if paths else None
    if forward is None:
        paths = frozenset()
        if not methods:
            return
    traced = {} if forward is None else {"forward": forward}
    owner.__class__ = shared(
        base,
        {
            **methods,
            **traced,
            "__module__": base.__module__,
            "__qualname__": base.__qualname__,
            "__doc__": base.__doc__,
            "__reduce_ex__": _reduce,
            "__prepare_scriptable__": Leaf.__prepare_scriptable__,
            "_fastdl_base": base,
            "_fastdl_paths": paths,
            "_fastdl_attention": bool(methods),
        },
    )


def _attention_methods(base: type) -> dict[str, object]:
    try:
        return attention_calls.methods(base)
    except Unwritable:
        return {}


def _traced(
    owner: nn.Module, base: type, paths: frozenset[str], methods: dict[str, object]
) -> Callable | None:
    """The forward that runs traced graphs, with attention fused in them if there are `methods` for it."""
    namespace: dict[str, object] = {"_base": base, "_forward": base.forward}
    namespace["_other"] = methods.get("forward", base.forward)
    sources, branches = [], {}
    found = traces(owner)
    for training, trace in found.items():
        if isinstance(trace, Untraceable):
            branches[training] = None
        elif training is False and trace is found[True]:
            branches[False] = branches[True]
        else:
            branches[training] = _branch(trace, paths, bool(methods), namespace, sources)
    parameters = next((trace.parameters for trace in found.values() if isinstance(trace, Trace)), None)
    if parameters is None:
        return None
    source = "\n".join([*sources, _dispatch(parameters, branches, namespace)])
    return define("forward", source, namespace, f"forward of {base.__qualname__}")


def unfuse(module: nn.Module) -> None:
    """The inverse of `fuse`."""
    assigned = next((kind for kind in type(module).__mro__ if "_fastdl_base" in kind.__dict__), None)
    if assigned is not None:
        take_back(module, assigned, assigned._fastdl_base)


def _branch(trace: Trace, paths: frozenset[str], attention: bool, namespace: dict, sources: list[str]) -> str:
    """Add the function for one trace and its guards; return the suffix of their names."""
    tag = "train" if trace.training else "eval"
    guards = Guards()
    guards.add("", "_base.forward is _forward")
    guards.extend(trace.guards)
    for pattern in families.find(trace.graph, trace.modules):
        if pattern.path in paths and pattern.refusal is None:
            pattern.fuse(trace.graph, guards)
    if attention:
        attention_calls.put(trace.graph)
    code = trace.graph.python_code("self")
    namespace[f"_run_{tag}"] = define("forward", code.src, dict(code.globals), f"graph of {tag}")
    sources.append(guards.compile(f"_holds_{tag}", namespace))
    return tag


def _dispatch(
    parameters: dict[str, inspect.Parameter], branches: dict[bool, str | None], namespace: dict
) -> str:
    """The source of the new forward: the graph of the mode where its guards hold, else the old forward."""
    signature, passed, required, defaults = ["self"], ["self"], [], []
    for name, parameter in parameters.items():
        keyword_only = parameter.kind is parameter.KEYWORD_ONLY
        if keyword_only and "*" not in signature:
            signature.append("*")
        passed.append(f"{name}={name}" if keyword_only else name)
        if parameter.default is parameter.empty:
            signature.append(name)
            required.append(name)
            continue
        namespace[f"_default_{name}"], namespace[f"_type_{name}"] = parameter.default, type(parameter.default)
        signature.append(f"{name}=_default_{name}")
        constant = parameter.default is None or isinstance(parameter.default, bool)
        same = f"{name} is {parameter.default}" if constant else f"{name} == _default_{name}"
        defaults.append(same if constant else f"type({name}) is _type_{name} and {same}")
    # The trace saw a value where these would be constants it could have branched on.
    inputs = [f"{name} is not {constant}" for name in required for constant in ("None", "True", "False")]
    # To torch.fx, which looks for layers, the forward is what it was.
    namespace["_Proxy"] = fx.Proxy
    inputs += [f"not isinstance({name}, _Proxy)" for name in required]
    conditions = " and ".join([*inputs, *defaults]) or "True"
    lines = [f"def forward({', '.join(signature)}):", f"    if {conditions}:"]
    arguments = ", ".join(["self", *required])
    modes = {"self.training": branches[True], "not self.training": branches[False]}
    if branches[True] == branches[False]:
        modes = {"True": branches[True]}
    for condition, tag in modes.items():
        if tag is not None:
            lines.append(
                f"        if {condition} and _holds_{tag}(self):\n            return _run_{tag}({arguments})"
            )
    lines.append("    other = _other if _base.forward is _forward else _base.forward")
    lines.append(f"    return other({', '.join(passed)})")
    return "\n".join(lines) + "\n"


def _reduce(self: nn.Module, protocol: int) -> tuple:
    """Pickle and copy as an instance of the class it had, traced anew when the state is back."""
    kind = next(kind for kind in type(self).__mro__ if "_fastdl_base" in kind.__dict__)
    state = self.__getstate__() if hasattr(self, "__getstate__") else self.__dict__
    return _thaw, (kind._fastdl_base, kind._fastdl_paths, kind._fastdl_attention), state


def _thaw(base: type, paths: frozenset[str], attention: bool = False) -> nn.Module:
    """An empty instance of `base` that becomes fused once its state is set."""

    def set_state(self: nn.Module, state: object) -> None:
        self.__class__ = base
        self.__setstate__(state)
        fuse(self, paths, attention)

    thawing = type(base)(base.__name__, (base,), {"__setstate__": set_state})
    return base.__new__(thawing)
