"""One graph of a module's forward for one `training` value, and a guard on everything the trace read.

torch.fx runs the forward with stand-ins for tensors. It runs on a double of the module: shallow copies of it
and its submodules whose attribute reads are recorded, so that the model itself is never touched. Submodules
are leaves of the graph.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from types import FunctionType, MappingProxyType

from torch import Tensor, fx, nn

from .doubles import Doubles
from .guards import Guards, is_nan
from .patterns import module_refusal
from .purity import Look, Untraceable, is_callable_constant, is_plain
from .random_state import RandomState
from .tracer import Tracer

_MISSING = object()


class Trace:
    """`graph` of `kind.forward` on `owner` while `owner.training == training`, valid as long as `guards` hold.

    `kind` is the owner's class or one it was made from. `parameters` are those of its forward without self; the
    trace has those with a default at it. Raises Untraceable.
    """

    def __init__(self, owner: nn.Module, kind: type, training: bool) -> None:
        self.owner, self.kind, self.training = owner, kind, training
        self.modules = dict(owner.named_modules())
        self.guards = Guards()
        self.reads_training = False
        self.recording = False
        self._snapshots: list[tuple[str, object, object]] = []
        self._look = Look(kind)
        forward = kind.forward
        self.parameters = signature(forward)
        self._look.function(forward)
        self.graph = self._run(forward)
        for namespace, name, value in self._look.constants.values():
            self.guards.constant(namespace, name, value)

    def _run(self, forward: Callable) -> fx.Graph:
        doubles = Doubles(self.owner, self.kind, self)
        root, self._canonical = doubles.root, doubles.paths
        self.tracer = Tracer()
        random = RandomState()
        try:
            type(root).forward = _entry(self, forward)
            graph = self.tracer.trace(root)
        except Untraceable:
            raise
        except Exception as error:
            raise Untraceable(_first_line(error)) from error
        finally:
            self.recording = False
            drawn = not random.unchanged()
            random.restore()
        if drawn:
            raise Untraceable("it draws random numbers outside of tensor operations")
        for name, given, before in self._snapshots:
            if given != before and not is_nan(given):
                raise Untraceable(f"it changes {name}")
        self._remove_identities(graph)
        return graph

    def _remove_identities(self, graph: fx.Graph) -> None:
        """Calls of an nn.Identity, with which models leave out a layer; they would stand between those of a chain."""
        for node in list(graph.nodes):
            module = self.modules.get(node.target) if node.op == "call_module" else None
            if module is not None and len(node.args) == 1 and _is_identity(module):
                node.replace_all_uses_with(node.args[0])
                graph.erase_node(node)
                self.guards.member(node.target, module, ())

    def read(self, module: nn.Module, path: str, own: dict[str, object], name: str) -> object:
        """What reading `module.name` inside the forward gives; the read becomes a guard."""
        if name in ("__class__", "__doc__", "__module__"):
            return object.__getattribute__(module, name)
        if name == "__dict__":
            raise Untraceable("it reads __dict__")
        if name == "training":
            self.reads_training = True
            if path:
                self.guards.equal(path, name, self.training)
            return self.training
        static = inspect.getattr_static(type(module), name, _MISSING)
        if isinstance(static, property):
            self._look.function(static.fget)
            return object.__getattribute__(module, name)
        if name == "_modules":
            return self._children(path, own)
        if name in ("_parameters", "_buffers"):
            raise Untraceable(f"it reads {name}, as {name[1:]}() does")
        if name in own:
            return self._value(path, name, own[name])
        if static is not _MISSING:
            return self._of_class(module, path, name, static)
        for tensors in (own["_parameters"], own["_buffers"]):
            if name in tensors:
                return self._tensor(path, name, tensors[name])
        if name in own["_modules"]:
            return self._child(path, name, own["_modules"][name])
        self.guards.absent(path, name)
        raise AttributeError(f"{type(module).__name__!r} object has no attribute {name!r}")

    def _children(self, path: str, own: dict) -> Mapping[str, nn.Module | None]:
        self.guards.children(path, tuple(own["_modules"]))
        for name, child in own["_modules"].items():
            self._child(path, name, child)
        return MappingProxyType(own["_modules"])

    def _child(self, path: str, name: str, child: nn.Module | None) -> nn.Module | None:
        self.guards.child(path, name, child is not None)
        if child is not None:
            canonical = self._canonical[id(child)]
            if canonical != f"{path}.{name}".lstrip("."):
                self.guards.alias(path, name, canonical)
        return child

    def _tensor(self, path: str, name: str, tensor: Tensor | None) -> fx.Proxy | None:
        if tensor is None:
            self.guards.same(path, name, None)
            return None
        return self.tracer.create_proxy("get_attr", f"{path}.{name}".lstrip("."), (), {})

    def _value(self, path: str, name: str, value: object) -> object:
        if isinstance(value, Tensor):
            return self._tensor(path, name, value)
        if is_callable_constant(value):
            self._look.function(value)
            self.guards.same(path, name, value)
            return value
        if not is_plain(value):
            raise Untraceable(
                f"it reads {_dotted(path, name)}: no guard can watch {type(value).__name__} objects"
            )
        given, before = copy.deepcopy(value), copy.deepcopy(value)
        self._snapshots.append((_dotted(path, name), given, before))
        self.guards.equal(path, name, before)
        return given

    def _of_class(self, module: nn.Module, path: str, name: str, static: object) -> object:
        if isinstance(static, FunctionType):
            self._look.function(static)
            if _user_defined(static):
                self.guards.method(path, name, static)
        elif isinstance(static, (staticmethod, classmethod)):
            self._look.function(static.__func__)
        elif is_plain(static):
            return self._value(path, name, static)
        elif not is_callable_constant(static):
            raise Untraceable(f"it reads {_dotted(path, name)}, a {type(static).__name__}")
        return object.__getattribute__(module, name)


def signature(forward: Callable) -> dict[str, inspect.Parameter]:
    """The parameters of a forward, without self. Raises Untraceable for *args and **kwargs."""
    parameters = list(inspect.signature(forward, follow_wrapped=False).parameters.values())[1:]
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            taker = "a decorator around it" if hasattr(forward, "__wrapped__") else "it"
            raise Untraceable(f"{taker} takes {parameter}")
        if parameter.default is not parameter.empty and not is_plain(parameter.default):
            raise Untraceable(f"the default of {parameter.name} is a {type(parameter.default).__name__}")
    return {parameter.name: parameter for parameter in parameters}


def _entry(trace: Trace, forward: Callable) -> FunctionType:
    """A forward of the required parameters alone, the others at their defaults, that turns the recording on."""
    required = [p for p in trace.parameters.values() if p.default is p.empty]
    by_position = [p.name for p in required if p.kind is not p.KEYWORD_ONLY]
    by_name = [f"{p.name}={p.name}" for p in required if p.kind is p.KEYWORD_ONLY]
    names = "".join(f", {p.name}" for p in required)
    source = f"def forward(self{names}):\n    return _run({', '.join(['self', *by_position, *by_name])})\n"

    def run(*args: object, **kwargs: object) -> object:
        trace.recording = True
        try:
            return forward(*args, **kwargs)
        finally:
            trace.recording = False

    namespace: dict[str, object] = {"_run": run}
    exec(source, namespace)
    return namespace["forward"]


def _is_identity(module: nn.Module) -> bool:
    return type(module) is nn.Identity and module_refusal(module, (nn.Identity,)) is None


def _user_defined(function: FunctionType) -> bool:
    return function.__module__.partition(".")[0] != "torch"


def _dotted(path: str, name: str) -> str:
    return ".".join(filter(None, ("self", path, name)))


def _first_line(error: Exception) -> str:
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
