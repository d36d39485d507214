"""The ways the recurrent ops can be computed, each forced through the public functions, with proof that it ran."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import fastdl
from fastdl import dispatch
from fastdl.ops.rnn import backends, plans, refusals, registration
from fastdl.testing.rnn import Sample

OPS = {"lstm": fastdl.ops.lstm, "gru": fastdl.ops.gru, "rnn": fastdl.ops.rnn}
CELL_OPS = {
    "lstm_cell": fastdl.ops.lstm_cell,
    "gru_cell": fastdl.ops.gru_cell,
    "rnn_cell": fastdl.ops.rnn_cell,
}
MODULES = {"lstm": "LSTM", "gru": "GRU", "rnn": "RNN"}


class Plan(NamedTuple):
    backend: str
    algorithm: str

    def __str__(self) -> str:
        return self.backend if self.backend == "reference" else f"{self.backend}-{self.algorithm}"


REFERENCE, FUSED, ATEN = Plan("reference", "torch"), Plan("cpu", "fused"), Plan("cpu", "aten")
# Where nothing was compiled the raw operators are their Python reference, and "fused" tests all but the kernels.
KERNELS_ARE_COMPILED = refusals.has_kernels("CPU")


@contextlib.contextmanager
def forced(plan: Plan) -> Iterator[None]:
    """The dispatcher sees this plan alone, whatever its candidate says about speed; the reference is refused."""
    if plan == REFERENCE:
        with fastdl.backend("reference"):
            yield
        return
    registered = {name: dispatch._ops[name] for name in (*OPS, *CELL_OPS)}
    only = (dispatch.Candidate(*plan, lambda *_: None),)
    for name, op in registered.items():
        dispatch._ops[name] = dispatch._Op(only, op.signature, op.arguments)
    plans._decided.clear()
    try:
        with fastdl.strict():
            yield
    finally:
        dispatch._ops.update(registered)
        plans._decided.clear()


@contextlib.contextmanager
def kernels_in_python() -> Iterator[None]:
    """The reference in the place of the compiled raw operators, which have no float64."""
    compiled = backends.RAW[FUSED]
    backends.RAW[FUSED] = backends.RawOperators(registration.rnn_sequence, registration.rnn_sequence_backward)
    try:
        yield
    finally:
        backends.RAW[FUSED] = compiled


def fused_serves(sample: Sample, dtype: torch.dtype) -> bool:
    """Whether the C++ kernels' own contract covers the sample."""
    if not KERNELS_ARE_COMPILED:
        return True
    with fastdl.backend("cpu"):
        return refusals.refuse_cpu_fused(sample.call(dtype)) is None


class Operators(TorchDispatchMode):
    """Records the names of all operators that run inside, below autograd."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def flat(result: object) -> list[Tensor]:
    """Every tensor of an op's or a module's result, in order."""
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, nn.utils.rnn.PackedSequence):
        return [result.data]
    return [t for part in result for t in flat(part)]


def arguments(
    kind: str,
    dtype: torch.dtype,
    T: int = 5,
    B: int = 3,
    I: int = 4,  # noqa: E741
    H: int = 6,
    **options: object,
) -> tuple[Tensor, Tensor | tuple[Tensor, Tensor], list[Tensor]]:
    """x, hx and params for an op of `kind`, all requiring grad; `options` are those of fastdl.nn.<kind>."""
    layer = getattr(fastdl.nn, MODULES[kind])(I, H, dtype=dtype, **options)
    states = layer.num_layers * (2 if layer.bidirectional else 1)
    rows = (B, T) if layer.batch_first else (T, B)
    x = torch.randn(*rows, I, dtype=dtype, requires_grad=True)
    h = torch.randn(states, B, layer.proj_size or H, dtype=dtype, requires_grad=True)
    c = torch.randn(states, B, H, dtype=dtype, requires_grad=True)
    return x, (h, c) if kind == "lstm" else h, [p.detach().requires_grad_() for p in layer.parameters()]


def leaves(x: Tensor, hx: Tensor | tuple[Tensor, Tensor], params: list[Tensor]) -> list[Tensor]:
    """What gradients are taken by."""
    return [x, *flat(hx), *params]
