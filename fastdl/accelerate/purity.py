"""What a function does besides computing on its arguments: a look at its code, without running it.

A trace runs a forward once and keeps only operations on tensors. Whatever else the code does (prints, context
managers, switches it reads from elsewhere) would be lost or frozen, so such code is not traced.
"""

from __future__ import annotations

import builtins
import dis
import enum
import inspect
from collections.abc import Callable
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType

import torch

from . import identity

# Builtins with an effect outside, or that reach attributes behind the recorder's back.
_BUILTINS = {
    *("print", "open", "input", "exec", "eval", "compile", "breakpoint"),
    *("globals", "locals", "vars", "setattr", "delattr"),
    *("id", "type", "issubclass"),
}
# Functions of torch whose answer, or effect, belongs to the moment of the call.
_MOMENTARY = {
    *("no_grad", "enable_grad", "inference_mode", "set_grad_enabled", "is_grad_enabled", "is_inference"),
    *("is_inference_mode_enabled", "autocast", "set_autocast_enabled", "is_autocast_enabled"),
    *("is_compiling", "is_exporting", "is_tracing", "is_in_onnx_export", "is_tensor", "disable"),
    *("checkpoint", "checkpoint_sequential", "fork", "record_function", "empty_cache"),
    *("manual_seed", "initial_seed", "set_default_dtype", "set_default_device"),
}
_MODULES = ("torch", "math", "operator", "typing", "collections", "functools", "itertools", "__future__")
# What a function is made of; the rest of inspect looks at the moment of the call.
_OF_INSPECT = {"signature"}
_PLAIN = (
    type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size,
    torch.memory_format, torch.layout, enum.Enum,
)  # fmt: skip
# A with or a try block leaves one of these, on every Python from 3.10.
_BLOCKS = frozenset({"PUSH_EXC_INFO", "SETUP_FINALLY", "SETUP_WITH", "BEFORE_WITH"})
# A stand-in is of no type that these know.
_PATTERNS = frozenset({"MATCH_SEQUENCE", "MATCH_MAPPING"})


class Untraceable(Exception):
    """A forward cannot be replaced by a trace of it; the message says why."""


def is_plain(value: object) -> bool:
    """A constant, or a container of constants: comparable by value."""
    if isinstance(value, (tuple, list, set, frozenset)):
        return all(map(is_plain, value))
    if isinstance(value, dict):
        return all(is_plain(k) and is_plain(v) for k, v in value.items())
    return isinstance(value, _PLAIN)


def is_callable_constant(value: object) -> bool:
    """A function or class: compared by identity."""
    return (
        isinstance(value, (FunctionType, BuiltinFunctionType, type)) or _of_torch(value) and callable(value)
    )


class Look:
    """Looks at functions; `constants` collects the (globals, name, value) they read, which a trace freezes."""

    def __init__(self, owner: type) -> None:
        self.owner = owner  # whose methods super() reaches
        self.constants: dict[tuple[int, str], tuple[dict, str, object]] = {}
        self.seen: set[CodeType] = set()

    def function(self, function: Callable) -> None:
        """Raise Untraceable if `function`, or a function it calls by name, does more than compute."""
        if not isinstance(function, FunctionType) or _of_torch(function):
            if getattr(function, "__name__", None) in _MOMENTARY:
                raise Untraceable(f"calls {function.__name__}")
            return
        if function.__code__ in self.seen:
            return
        self.seen.add(function.__code__)
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            if name != "__class__":
                self._value(name, cell.cell_contents)
        self._code(function.__code__, function)

    def _code(self, code: CodeType, function: FunctionType) -> None:
        suspends = code.co_flags & (inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR)
        if suspends and code.co_name != "<genexpr>":
            raise Untraceable(f"{code.co_name} is a generator or coroutine")
        for instruction in dis.get_instructions(code):
            self._instruction(instruction, code, function)
        if asked := identity.asked(code, self.owner):
            raise Untraceable(f"{code.co_name} asks whether {asked}")
        if "super" in code.co_names:
            self._inherited(code)
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                self._code(constant, function)

    def _inherited(self, code: CodeType) -> None:
        for kind in self.owner.__mro__:
            for name in code.co_names:
                if isinstance(kind.__dict__.get(name), FunctionType):
                    self.function(kind.__dict__[name])

    def _instruction(self, instruction: dis.Instruction, code: CodeType, function: FunctionType) -> None:
        kind, name = instruction.opname, instruction.argval
        if kind in _BLOCKS:
            raise Untraceable(f"{code.co_name} has a with or try block")
        if kind in _PATTERNS:
            raise Untraceable(f"{code.co_name} matches a value with the pattern of a list or dict")
        if kind in ("STORE_GLOBAL", "DELETE_GLOBAL"):
            raise Untraceable(f"{code.co_name} writes the global {name}")
        if kind in ("STORE_ATTR", "DELETE_ATTR"):
            raise Untraceable(f"{code.co_name} writes the attribute {name}")
        if kind in ("LOAD_GLOBAL", "LOAD_NAME"):
            self._name(name, code, function)
        elif kind in ("LOAD_ATTR", "LOAD_METHOD") and name in _MOMENTARY:
            raise Untraceable(f"{code.co_name} uses {name}")

    def _name(self, name: str, code: CodeType, function: FunctionType) -> None:
        if name in function.__globals__:
            value = function.__globals__[name]
            if value is inspect and vars(inspect).keys() & set(code.co_names) <= _OF_INSPECT:
                return
            if is_plain(value) and not isinstance(value, (list, dict, set)):
                self.constants[id(function.__globals__), name] = (function.__globals__, name, value)
            else:
                self._value(name, value)
        elif name in _BUILTINS and hasattr(builtins, name):
            raise Untraceable(f"{function.__name__} calls {name}()")

    def _value(self, name: str, value: object) -> None:
        if isinstance(value, ModuleType):
            if value.__name__.partition(".")[0] not in _MODULES:
                raise Untraceable(f"uses the module {value.__name__}")
        elif isinstance(value, (FunctionType, BuiltinFunctionType)) or _of_torch(value):
            self.function(value)
        elif not isinstance(value, (type, *_PLAIN)):
            raise Untraceable(f"reads {name}, a {type(value).__name__} from outside the module")


def _of_torch(value: object) -> bool:
    module = getattr(value, "__module__", None)
    return isinstance(module, str) and module.partition(".")[0] == "torch"
