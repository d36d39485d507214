"""Which backend and algorithm serves a call: decided here, from metadata only, and able to say why.

An op registers its candidates in order of preference. Each has a `refusal`: None, or the reason it cannot
(or should not) serve this call. The first candidate without a refusal is chosen; the reference never refuses.
Precedence of settings: context manager > FASTDL_BACKEND > automatic. Settings are per thread.
"""

from __future__ import annotations

import inspect
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from . import _extension
from .transforms import obstacle

BACKENDS = ("reference", "cpu", "cuda", "triton")
PRECISIONS = ("default", "strict")

_logger = logging.getLogger("fastdl")


class Settings(threading.local):
    # Set in __init__: Dynamo guards on instance attributes, not on class-level defaults.
    def __init__(self) -> None:
        self.backend: str | None = _extension.environment_backend()
        self.strict = False
        self.precision = "default"
        self._summarise()

    def change(self, name: str, value: object) -> None:
        setattr(self, name, value)
        self._summarise()

    def _summarise(self) -> None:
        # one attribute for the choices that end in microseconds
        self.automatic = self.backend is None and not self.strict and self.precision == "default"


settings = Settings()


class Choice(NamedTuple):
    backend: str
    algorithm: str


@dataclass(frozen=True)
class Candidate:
    """One way to compute an op. `refusal(*arguments)` returns None or why not."""

    backend: str
    algorithm: str
    refusal: Callable[..., str | None]


@dataclass(frozen=True)
class Explanation:
    """What would serve a call, and why nothing before it does."""

    op: str
    backend: str
    algorithm: str
    refused: tuple[tuple[str, str, str], ...]

    def __str__(self) -> str:
        lines = [f"{self.op}: {self.backend} ({self.algorithm})"]
        lines += [f"  not {backend} ({algorithm}): {reason}" for backend, algorithm, reason in self.refused]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><td>{b}</td><td>{a}</td><td>{r}</td></tr>" for b, a, r in self.refused)
        head = f"<b>{self.op}</b>: {self.backend} ({self.algorithm})"
        return (
            f"{head}<table><tr><th>backend</th><th>algorithm</th><th>refused because</th></tr>{rows}</table>"
        )


class UnsupportedError(RuntimeError):
    """Nothing allowed by `backend()` or `strict()` can serve a call; the message lists the reasons."""


@dataclass(frozen=True)
class _Op:
    candidates: tuple[Candidate, ...]
    signature: inspect.Signature
    arguments: Callable[..., tuple]

    def bind(self, args: tuple, kwargs: dict) -> tuple:
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return self.arguments(**bound.arguments)


_ops: dict[str, _Op] = {}
_logged: set[str] = set()


def register(op: str, candidates: list[Candidate], public: Callable, arguments: Callable[..., tuple]) -> None:
    """Add an op. `arguments` turns the arguments of the public function into those of the refusals."""
    for candidate in candidates:
        if candidate.backend not in BACKENDS:
            raise ValueError(f"{op}: unknown backend {candidate.backend!r}")
    _ops[op] = _Op(
        (*candidates, Candidate("reference", "torch", lambda *_: None)), inspect.signature(public), arguments
    )


def choose(op: str, *arguments: object) -> Choice:
    """The first candidate that serves. Raises UnsupportedError where the settings leave none."""
    forced = settings.backend
    for candidate in _ops[op].candidates:
        if forced is not None and candidate.backend != forced:
            continue
        if candidate.refusal(*arguments) is None:
            if candidate.backend == "reference" and forced is None:
                _fell_back(op, arguments)
            return Choice(candidate.backend, candidate.algorithm)
    raise UnsupportedError(_reasons(op, f"backend {forced!r} cannot serve this call", arguments))


def require_reference(op: str, reason: str) -> None:
    """Only the reference can serve this call: raise UnsupportedError where the settings do not allow it."""
    if settings.strict or settings.backend not in (None, "reference"):
        raise UnsupportedError(f"{op}: only the reference can serve this call: {reason}")


def explain(op: str, *args: object, **kwargs: object) -> Explanation:
    """Which backend and algorithm `fastdl.ops.<op>(*args, **kwargs)` would use now, and why not the others.

    >>> import fastdl, torch
    >>> fastdl.explain("conv_relu_maxpool", torch.ones(1, 3, 8, 8), torch.ones(4, 3, 3, 3)).op
    'conv_relu_maxpool'
    """
    if op not in _ops:
        raise ValueError(f"op must be one of {sorted(_ops)}, got {op!r}")
    arguments = _ops[op].bind(args, kwargs)
    for_all = obstacle(*(a for a in arguments if isinstance(a, torch.Tensor)))
    if for_all is not None:
        require_reference(op, for_all)
    refused = []
    for candidate in _ops[op].candidates:
        reason = candidate.refusal(*arguments)
        if for_all is not None and candidate.backend != "reference":
            reason = for_all
        if settings.backend is not None and candidate.backend != settings.backend:
            reason = f"backend {settings.backend!r} is forced"
        if reason is None:
            return Explanation(op, candidate.backend, candidate.algorithm, tuple(refused))
        refused.append((candidate.backend, candidate.algorithm, reason))
    raise UnsupportedError(_reasons(op, f"backend {settings.backend!r} cannot serve this call", arguments))


def _fell_back(op: str, arguments: tuple) -> None:
    if settings.strict:
        raise UnsupportedError(_reasons(op, "strict() refuses the reference", arguments))
    if not torch.compiler.is_compiling() and op not in _logged:
        _logged.add(op)
        _logger.warning(_reasons(op, "falling back to plain PyTorch (said once)", arguments))


def _reasons(op: str, what: str, arguments: tuple) -> str:
    refusals = [(c, c.refusal(*arguments)) for c in _ops[op].candidates]
    listed = "; ".join(f"{c.backend} ({c.algorithm}): {reason}" for c, reason in refusals if reason)
    return f"{op}: {what}. {listed}"


class _Setting:
    """A context manager that changes one setting of this thread; nests, restores on exit."""

    def __init__(self, name: str, value: object) -> None:
        self.name, self.value = name, value
        self.before: list[object] = []

    def __enter__(self) -> None:
        self.before.append(getattr(settings, self.name))
        settings.change(self.name, self.value)

    def __exit__(self, *exception: object) -> None:
        settings.change(self.name, self.before.pop())


def backend(name: str) -> _Setting:
    """Force one backend inside a `with`: "reference", "cpu", "cuda" or "triton". A call it cannot serve raises."""
    if name not in BACKENDS:
        raise ValueError(f"backend must be one of {BACKENDS}, got {name!r}")
    return _Setting("backend", name)


def strict(enabled: bool = True) -> _Setting:
    """Raise instead of falling back to the reference, inside a `with`."""
    return _Setting("strict", enabled)


def precision(name: str) -> _Setting:
    """ "strict" refuses algorithms whose error rule has an exception (Winograd, TF32); "default" allows them.

    It says nothing about torch's own operators: whether cuDNN convolves in TF32 is torch's setting.
    """
    if name not in PRECISIONS:
        raise ValueError(f"precision must be one of {PRECISIONS}, got {name!r}")
    return _Setting("precision", name)
