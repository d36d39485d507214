"""One graph of a module's forward for one `training` value, and a guard on everything the trace read.

torch.fx runs the forward with stand-ins for tensors. It runs on a double of the module: shallow copies of it
and its submodules whose attribute reads are recorded, so that the model itself is never touched. Submodules
are leaves of the graph.
"""

from __future__ import annotations

import copy
import dataclasses
import dis
import inspect
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import FunctionType, MappingProxyType

from torch import Size, Tensor, fx, nn

from .doubles import Doubles
from .guards import Guards, is_nan
from .in_place import Augmented
from .patterns import module_refusal
from .purity import Look, Untraceable, is_callable_constant, is_plain
from .random_state import RandomState

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
        self.tracer = _Tracer()
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


_CHANGEABLE = "it gives a module a list or dict that the module may change"


class _Tracer(fx.Tracer):
    def __init__(self) -> None:
        super().__init__()
        self._given: list[list | dict] = []  # to modules

    def call_module(
        self, m: nn.Module, forward: Callable, args: tuple, kwargs: dict[str, object]
    ) -> fx.Proxy:
        called = super().call_module(m, forward, args, kwargs)
        given = list(_containers((*args, *kwargs.values())))
        if not all(given):  # an empty one is there to be filled
            raise Untraceable(_CHANGEABLE)
        self._given += given
        return called

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if not module_qualified_name:
            raise Untraceable("it calls itself")
        return True

    def getattr(self, attr: str, attr_val: object, parameter_proxy_cache: dict) -> object:
        return attr_val  # reads are the recorder's

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Value(node, self)

    def create_arg(self, a: object) -> object:
        if isinstance(a, fx.Proxy):
            return a.node
        if isinstance(a, Tensor):
            raise Untraceable("it makes a tensor that does not depend on its input")
        if any(a is given for given in self._given):
            raise Untraceable(_CHANGEABLE)
        if type(a) in _SIMPLIFIED:
            parts = self.create_arg(_SIMPLIFIED[type(a)](a))
            return self.create_node("call_function", type(a), (parts,), {})
        try:
            if _is_made_anew(a):
                return super().create_arg(a)
        except (NotImplementedError, TypeError):
            pass
        raise Untraceable(f"it passes on a {type(a).__name__}, which a trace cannot make")

    def to_bool(self, obj: fx.Proxy) -> bool:
        raise Untraceable(f"its control flow depends on {_origin(obj.node)}")

    def iter(self, obj: fx.Proxy) -> Iterator:
        raise Untraceable("it iterates over a value of unknown length")


def _containers(values: Iterable[object]) -> Iterator[list | dict]:
    """The lists and dicts among values, and in them."""
    for value in values:
        if isinstance(value, fx.Proxy):  # asked first: it would not answer to others
            continue
        if isinstance(value, (list, dict)):
            yield value
        if isinstance(value, (tuple, list, dict)):
            yield from _containers(value.values() if isinstance(value, dict) else value)


# What torch.fx would make of these.
_SIMPLIFIED = {OrderedDict: dict, Size: tuple}


def _is_made_anew(value: object) -> bool:
    """Whether torch.fx's way to make an object from its parts gives one like it; it has none for many others.

    A class may have a constructor of its own, which is tried. Raises TypeError where it takes other arguments.
    """
    kind = type(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return all(a is b for a, b in zip(kind(*value), value, strict=True))
    if isinstance(value, (tuple, list, dict)):
        return kind in (tuple, list, dict)
    if dataclasses.is_dataclass(value):
        parts = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        made = kind(**parts)
        return all(getattr(made, name) is part for name, part in parts.items())
    return True


def _number(self: fx.Proxy, *_: object) -> int:
    raise Untraceable(f"it reads a number from {_origin(self.node)}")


class _StandIn(Augmented):
    """Says what a trace has no answer for in words of the forward, not in torch.fx's."""

    __int__ = __float__ = __index__ = __round__ = _number

    def __len__(self) -> int:
        raise Untraceable("it reads the length of a value")

    def __setitem__(self, index: object, value: object) -> None:
        raise Untraceable("it writes elements of a value")

    def __getattr__(self, name: str) -> _Attribute:
        reader = sys._getframe(1)
        if dis.opname[reader.f_code.co_code[reader.f_lasti]] not in ("LOAD_ATTR", "LOAD_METHOD"):
            raise Untraceable(f"it asks a value for {name} by hasattr or getattr")
        return _Attribute(self, name)


class _Value(_StandIn, fx.Proxy):
    """It does not answer to isinstance in a user's code either: it would say no to Tensor."""

    @property
    def __class__(self) -> type:
        asker = sys._getframe(1).f_globals.get("__name__", "")
        if asker.partition(".")[0] == "torch":
            return _Value
        raise Untraceable("the type of a value is asked for, as isinstance and torch.zeros do")


class _Attribute(_StandIn, fx.proxy.Attribute):
    """An attribute of a stand-in, as x.mT."""


# What a tensor says of itself without its elements.
_METADATA = {
    *("shape", "size", "ndim", "dim", "numel", "nelement", "stride", "is_contiguous"),
    *("dtype", "is_floating_point", "is_complex", "device", "is_cuda", "get_device", "layout", "is_sparse"),
    *("requires_grad", "is_leaf", "is_quantized", "is_nested"),
}


def _origin(node: fx.Node) -> str:
    """What a value was computed from: metadata alone, or more."""
    read, seen = set(), [node]
    for each in seen:
        called = each.args[1] if each.target is getattr else getattr(each.target, "__name__", each.target)
        if each.op in ("call_function", "call_method") and called in _METADATA:
            read.add(called)
        elif each.all_input_nodes:
            seen += [given for given in each.all_input_nodes if given not in seen]
        else:
            return "data"
    return f"a tensor's {' and '.join(sorted(read))}"


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
