"""Doubles of a module and its submodules: shallow copies whose attribute reads go to a recorder.

So a traced forward never touches the model, and what it writes is refused.
"""

from __future__ import annotations

import abc
import sys
from typing import Protocol

from torch import fx, nn

from .purity import Untraceable

_RECORDER, _PATH = "_fastdl_recorder", "_fastdl_path"


class Recorder(Protocol):
    recording: bool

    def read(self, module: nn.Module, path: str, own: dict[str, object], name: str) -> object:
        """What `module.name` gives; `own` is the double's `__dict__`, `path` its name."""


class Doubles:
    """The doubles of `module` and everything below; `root` is that of `module`, as an instance of `kind`."""

    def __init__(self, module: nn.Module, kind: type, recorder: Recorder) -> None:
        self.recorder = recorder
        self.paths: dict[int, str] = {}  # by id of the double
        self._made: dict[int, nn.Module] = {}
        self._classes: dict[type, type] = {}
        self.root = self._make(module, kind, "")

    def _make(self, module: nn.Module, kind: type, path: str) -> nn.Module:
        if id(module) in self._made:
            return self._made[id(module)]
        # A class for the root alone: it gets a forward of its own.
        made = _recording_class(kind) if not path else self._class(kind)
        double = self._made[id(module)] = object.__new__(made)
        children = {
            name: None if child is None else self._make(child, type(child), f"{path}.{name}".lstrip("."))
            for name, child in module._modules.items()
        }
        added = {"_modules": children, _RECORDER: self.recorder, _PATH: path}
        object.__getattribute__(double, "__dict__").update({**module.__dict__, **added})
        self.paths[id(double)] = path
        return double

    def _class(self, kind: type) -> type:
        if kind not in self._classes:
            self._classes[kind] = _recording_class(kind)
        return self._classes[kind]


def can_be_subclassed(kind: type) -> bool:
    """Whether a subclass made at run time behaves as `kind` does."""
    return (
        type(kind) in (type, abc.ABCMeta)
        and kind.__getattr__ is nn.Module.__getattr__
        and kind.__getattribute__ is object.__getattribute__
        and not any("__init_subclass__" in base.__dict__ for base in kind.__mro__[:-1])
    )


def _recording_class(kind: type) -> type:
    namespace = {"__getattr__": _missing, "__setattr__": _write, "__delattr__": _write}
    if can_be_subclassed(kind):
        return type(kind)(kind.__name__, (kind,), {**namespace, "__getattribute__": _read})
    return type(kind.__name__, (nn.Module,), {**namespace, "__getattribute__": _read_opaque})


def _read(self: nn.Module, name: str) -> object:
    own = object.__getattribute__(self, "__dict__")
    if not own[_RECORDER].recording or _asked_by_fx():
        return object.__getattribute__(self, name)
    return own[_RECORDER].read(self, own[_PATH], own, name)


def _read_opaque(self: nn.Module, name: str) -> object:
    own = object.__getattribute__(self, "__dict__")
    if own[_RECORDER].recording and not _asked_by_fx():
        raise Untraceable(
            f"it reads {own[_PATH]}.{name}, and {type(self).__name__} is a class of its own kind"
        )
    return object.__getattribute__(self, name)


def _missing(self: nn.Module, name: str) -> object:
    if object.__getattribute__(self, "__dict__")[_RECORDER].recording:
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
    return nn.Module.__getattr__(self, name)


def _write(self: nn.Module, name: str, *_: object) -> None:
    raise Untraceable(f"it writes self.{name}")


def _asked_by_fx() -> bool:
    return sys._getframe(2).f_globals.get("__name__") == fx.Tracer.__module__
