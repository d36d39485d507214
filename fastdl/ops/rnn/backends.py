"""How each backend and algorithm carries a plan out, layer by layer; torch's own layers, a whole stack at once."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...dispatch import Choice
from . import registration, triton_ops  # noqa: F401, the operators below must be defined
from .parameter_gradients import recurrent_gradients
from .projection import Projected, project, project_backward
from .reference import Sequence
from .reference_backward import SequenceGradients
from .refusals import Call
from .steps import Context
from .structure import Structure


class RawOperators(NamedTuple):
    """The raw operators of one backend. An overload called directly skips 1 us of overload resolution."""

    forward: torch._ops.OpOverload
    backward: torch._ops.OpOverload


def _raw(suffix: str) -> RawOperators:
    names = ("rnn_sequence", "rnn_sequence_backward")
    return RawOperators(*(getattr(torch.ops.fastdl, name + suffix).default for name in names))


# cpu and cuda are two keys of the same operators; Triton's are operators of their own.
_compiled = _raw("")
RAW = {
    ("cpu", "fused"): _compiled,
    ("cuda", "fused"): _compiled,
    ("triton", "fused"): _raw("_triton"),
    ("triton", "fused_tf32"): _raw("_triton_tf32"),
}

DELEGATED = ("aten", "cudnn")


class Plan(NamedTuple):
    """Everything about a layer that follows from metadata: decided once a signature, then remembered."""

    backend: str
    algorithm: str
    s: Structure
    packed: list[int]
    zoneout: list[float]
    checkpoint: bool

    @property
    def delegated(self) -> bool:
        return self.algorithm in DELEGATED


def make_plan(choice: Choice, call: Call) -> Plan:
    """The plan of a choice; every layer of a stack has the same."""
    # The C++ kernels project a few steps at a time into cache. Backward needs nothing of the projection.
    inside = choice.backend == "cpu" and not call.gradient and not call.s.layer_norm
    s = call.s._replace(projected=not inside)
    return Plan(*choice, s, s.packed(), list(call.zoneout), call.checkpoint)


class Saved(NamedTuple):
    """What forward gives and backward needs; empty where it does not exist."""

    output: Tensor
    h_n: Tensor
    c_n: Tensor
    gates: Tensor
    cells: Tensor
    rstd: Tensor
    norms: tuple[Tensor, ...]


def by_direction(params: tuple[Tensor, ...] | list[Tensor], s: Structure) -> list[dict[str, Tensor]]:
    """A layer's flat list as name -> tensor for each direction."""
    names = s.names()
    return [
        dict(zip(names, params[d * len(names) : (d + 1) * len(names)], strict=True))
        for d in range(s.directions)
    ]


def _sequence_weights(params: tuple[Tensor, ...] | list[Tensor], s: Structure) -> list[Tensor]:
    return [w[name] for w in by_direction(params, s) for name in s.sequence_names()]


def forward(
    plan: Plan,
    x: Tensor,
    h_0: Tensor | None,
    c_0: Tensor | None,
    params: tuple[Tensor, ...] | list[Tensor],
    context: Context,
    save: bool,
) -> Saved:
    """One layer."""
    s, projected = plan.s, Projected(x)
    if s.projected:
        projected = project(x, by_direction(params, s), s)
    found = RAW[plan[:2]].forward(
        projected.gx, h_0, c_0, _sequence_weights(params, s), *context[:6], plan.packed, plan.zoneout, save
    )
    return Saved(*found, projected.norms if save else ())


def backward(
    plan: Plan,
    grads: tuple[Tensor | None, Tensor | None, Tensor | None],
    x: Tensor,
    h_0: Tensor | None,
    c_0: Tensor | None,
    params: tuple[Tensor, ...],
    context: Context,
    saved: Saved,
    needs: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """Gradients of x, h_0, c_0 and every parameter, None where not needed (`needs`, in this order)."""
    s = plan.s
    found = SequenceGradients(
        *RAW[plan[:2]].backward(
            *grads, h_0, c_0, _sequence_weights(params, s), saved.output, saved.gates, saved.cells, saved.rstd,
            *context[:6], plan.packed, plan.zoneout,
        )
    )  # fmt: skip
    directions, names = by_direction(params, s), s.names()
    wanted = tuple(name for i, name in enumerate(names * s.directions) if needs[3 + i])
    outside = any(name in wanted for name in ("weight_ih", "bias_ih", "weight_norm_ih"))
    grad_x, projections = project_backward(found.grad_gates, x, directions, saved.norms, s, needs[0], outside)
    sequence = Sequence(saved.output, saved.output, saved.output, saved.gates, saved.cells, saved.rstd)
    recurrences = recurrent_gradients(found, h_0, c_0, directions, sequence, context, s, wanted)
    by_name = [a | b for a, b in zip(projections, recurrences, strict=True)]
    parameters = [
        d.get(name) if needs[3 + i * len(names) + j] else None
        for i, d in enumerate(by_name)
        for j, name in enumerate(names)
    ]
    return (
        grad_x,
        found.grad_h_0 if needs[1] else None,
        found.grad_c_0 if needs[2] else None,
        *parameters,
    )


_TORCHS = {"lstm": torch.lstm, "gru": torch.gru, "rnn_tanh": torch.rnn_tanh, "rnn_relu": torch.rnn_relu}


def delegate(
    cell: str,
    x: Tensor,
    h_0: Tensor,
    c_0: Tensor | None,
    params: list[Tensor],
    batch_sizes: Tensor | None,
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(output, h_n, c_n) of a whole stack by torch's own function, with its own autograd."""
    hx = h_0 if c_0 is None else (h_0, c_0.to(x.dtype))
    rows = (x, hx) if batch_sizes is None else (x, batch_sizes, hx)
    options = (has_biases, num_layers, dropout, train, bidirectional)
    layout = (batch_first,) if batch_sizes is None else ()
    result = _TORCHS[cell](*rows, params, *options, *layout)
    return (*result, None) if c_0 is None else result


_TORCHS_CELLS = {
    "lstm": torch.lstm_cell,
    "gru": torch.gru_cell,
    "rnn_tanh": torch.rnn_tanh_cell,
    "rnn_relu": torch.rnn_relu_cell,
}


def delegate_cell(
    cell: str, x: Tensor, h: Tensor | None, c: Tensor | None, params: list[Tensor], call: Call
) -> tuple[Tensor, Tensor]:
    """(h', c') of one step by torch's own function; c' means nothing where the cell has none."""
    shape = (call.sizes.B, call.sizes.H)
    h = x.new_zeros(shape) if h is None else h
    if cell != "lstm":
        h = _TORCHS_CELLS[cell](x, h, *params)
        return h, h
    c = x.new_zeros(shape) if c is None else c.to(x.dtype)
    return torch.lstm_cell(x, (h, c), *params)
