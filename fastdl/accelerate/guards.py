"""What a trace took for granted, as one generated function that says whether it still holds.

A check is an expression over a module ({m}) and constants ({0}, {1}). Modules are found by name at each call,
never kept, so the same code serves copies of the model.
"""

from __future__ import annotations

import functools
import keyword
import linecache
import zlib
from collections.abc import Callable
from types import MethodType

from torch import nn

_MEMBER = (
    "type({m}) is {0}",
    '"forward" not in {m}.__dict__',
    "not ({m}._forward_pre_hooks or {m}._forward_hooks or {m}._backward_pre_hooks or {m}._backward_hooks)",
)
_every = nn.modules.module
_HOOKS_OF_EVERY_MODULE = (
    _every._global_forward_pre_hooks, _every._global_forward_hooks,
    _every._global_backward_pre_hooks, _every._global_backward_hooks,
)  # fmt: skip


class Guards:
    """Checks in the order they were made, each once."""

    def __init__(self) -> None:
        self._checks: dict[tuple[str, str, int], tuple] = {}
        self._children: dict[str, tuple[str, ...]] = {}

    def add(self, path: str, check: str, *constants: object) -> None:
        """The module at `path` ("" is the owner) must satisfy `check`."""
        self._checks.setdefault((path, check, id(constants[0]) if constants else 0), constants)

    def extend(self, others: Guards) -> None:
        self._checks.update(others._checks)

    def equal(self, path: str, name: str, value: object) -> None:
        """An attribute compared by type and value, a method and a partial function by what they are made of."""
        if value is None or isinstance(value, bool):
            self.same(path, name, value)
            return
        if isinstance(value, MethodType):
            self.add(path, f'getattr({_attribute(name)}, "__func__", None) is {{0}}', value.__func__)
            return
        read = _attribute(name)
        if isinstance(value, functools.partial):
            self.add(path, f"type({read}) is {{0}}", type(value))
            self.add(path, f"{read}.func is {{0}}", value.func)
            self.add(path, f"({read}.args, {read}.keywords) == {{0}}", (value.args, dict(value.keywords)))
            return
        if is_nan(value):
            self.add(path, f"type({read}) is float and {read} != {read}")
            return
        self.add(path, f"type({read}) is {{1}} and {read} == {{0}}", value, type(value))

    def same(self, path: str, name: str, value: object) -> None:
        """An attribute compared by identity."""
        self.add(path, f"{_attribute(name)} is {{0}}", value)

    def method(self, path: str, name: str, function: Callable) -> None:
        """A method neither replaced on the class nor hidden by an attribute of the instance."""
        # torch.compile reads getattr(m.method, "__func__", None) as None
        self.add(
            path,
            f"getattr(type({{m}}), {name!r}, None) is {{0}} and {name!r} not in {{m}}.__dict__",
            function,
        )

    def absent(self, path: str, name: str) -> None:
        self.add(path, "not hasattr({m}, {0})", name)

    def children(self, path: str, names: tuple[str, ...]) -> None:
        """Exactly these submodules, in this order."""
        self.add(path, "tuple({m}._modules) == {0}", self._children.setdefault(path, names))

    def child(self, path: str, name: str, present: bool) -> None:
        self.add(path, f"{{m}}._modules.get({{0}}) is {'not ' if present else ''}None", name)

    def alias(self, path: str, name: str, canonical: str) -> None:
        """The submodule is also known under another path, which is the one the trace uses."""
        self.add(path, f"{{m}}._modules.get({{0}}) is {_lookup(canonical)}", name)

    def constant(self, namespace: dict, name: str, value: object) -> None:
        """A global, compared by value."""
        read = f"{{0}}.get({name!r})"  # an identifier
        self.add("", f"{read} != {read}" if is_nan(value) else f"{read} == {{1}}", namespace, value)

    def member(self, path: str, module: nn.Module, attributes: tuple[str, ...]) -> None:
        """A module whose call a fused call stands for: same type, forward and attributes, hooks nowhere."""
        for check in _MEMBER:
            self.add(path, check, *([type(module)] if "{0}" in check else []))
        if not type(module).__module__.startswith("torch."):
            self.method(path, "forward", type(module).forward)
        self.add("", "not ({0} or {1} or {2} or {3})", *_HOOKS_OF_EVERY_MODULE)
        for name in attributes:
            self.equal(path, name, getattr(module, name))

    def compile(self, name: str, namespace: dict[str, object]) -> str:
        """The source of `def name(self)`, which returns whether all checks hold; constants go to `namespace`."""
        local = {"": "self"}
        lines = [f"def {name}(self):"]
        for (path, check, _), constants in self._checks.items():
            names = []
            for value in constants:
                names.append(f"_{name}_{len(namespace)}")
                namespace[names[-1]] = value
            module = _local(path, local, lines)
            lines.append(f"    if not ({check.replace('{m}', module).format(*names)}):\n        return False")
        return "\n".join([*lines, "    return True", ""])


def define(name: str, source: str, namespace: dict[str, object], title: str) -> Callable:
    """The function `name` of generated source, which tracebacks can show."""
    filename = f"<fastdl {title} {zlib.crc32(source.encode()):08x}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    exec(compile(source, filename, "exec"), namespace)
    return namespace[name]


def is_nan(value: object) -> bool:
    return isinstance(value, float) and value != value


def _local(path: str, local: dict[str, str], lines: list[str]) -> str:
    if path not in local:
        parent, _, last = path.rpartition(".")
        above = _local(parent, local, lines)
        local[path] = f"m{len(local)}"
        lines.append(f"    {local[path]} = {above}._modules.get({last!r})")
        lines.append(f"    if {local[path]} is None:\n        return False")
    return local[path]


def _attribute(name: str) -> str:
    plain = name.isidentifier() and not keyword.iskeyword(name)
    return f"{{m}}.{name}" if plain else f"getattr({{m}}, {name!r})"


def _lookup(path: str) -> str:
    names = "".join(f"._modules[{name!r}]" for name in path.split("."))
    return "self" + names.replace("{", "{{").replace("}", "}}")
