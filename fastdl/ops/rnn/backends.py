"""How each backend and algorithm carries a plan out, layer by layer; torch's own layers, a whole stack at once."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...dispatch import Choice
from .. import products
from . import registration, triton_ops  # noqa: F401, the operators below must be defined
from .call import Call
from .options import Options
from .parameter_gradients import recurrent_gradients
from .projection import Projected, project, project_backward
from .reference import Sequence
from .reference_backward import SequenceGradients
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
    # The C++ kernels project a few steps at a time into cache; backward needs nothing of the projection. Where gates
    # are saved that took 0.5 to 1.0 of the time with AVX-512. With AVX2 it took 0.7 to 1.2 on the same CPU, and was not
    # measured on one that ends there.
    wide = not call.gradient or products.uses_wide_vectors()
    inside = choice.backend == "cpu" and not call.s.layer_norm and wide and not _projected_by_tiles(call)
    s = call.s._replace(projected=not inside)
    return Plan(*choice, s, s.packed(), list(call.zoneout), call.checkpoint)


def _projected_by_tiles(call: Call) -> bool:
    """Whether AMX tiles project all steps at once faster than the kernel a few: the layer then takes 1 / 1.1 to 1 / 1.2
    of the time, unless what they write and read is much beside the product, or the kernel has tiles itself.
    """
    if call.dtype is not torch.float32 or call.packed or call.compiling or _multiplied_by_tiles(call):
        return False
    T, B, I, H, _ = call.sizes  # noqa: E741
    rows, columns = T * B, call.s.num_gates * H
    return (I >= 512 or rows * columns <= 2**22) and products.by_tiles(rows, columns, I)


def _multiplied_by_tiles(call: Call) -> bool:
    """Whether the kernel multiplies float32 by tiles if every step has all rows: `fills_tiles` in rnn_plan.cpp."""
    T, B, _, H, R = call.sizes
    few = 32 if call.s.num_gates * H * R * 6 <= 2**21 else 64
    return T > 1 and H >= 96 and few <= B


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
    s = plan.s._replace(projected=True)  # from grad_gates on, wherever forward projected x
    found = SequenceGradients(
        *RAW[plan[:2]].backward(
            *grads, h_0, c_0, _sequence_weights(params, s), saved.output, saved.gates, saved.cells, saved.rstd,
            *context[:6], s.packed(), plan.zoneout,
        )
    )  # fmt: skip
    directions, names = by_direction(params, s), s.names()
    wanted = tuple(name for i, name in enumerate(names * s.directions) if needs[3 + i])
    outside = any(name in wanted for name in ("weight_ih", "bias_ih", "weight_norm_ih"))
    grad_x, projections = project_backward(found.grad_gates, x, directions, saved.norms, s, needs[0], outside)
    sequence = Sequence(saved.output, saved.output, saved.output, saved.gates, saved.cells, saved.rstd)
    recurrences = recurrent_gradients(found, h_0, c_0, directions, sequence, context, s, wanted, projections)
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
    x: Tensor,
    hx: Tensor | tuple[Tensor, Tensor] | None,
    params: list[Tensor],
    batch_sizes: Tensor | None,
    B: int,
    options: Options,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(output, h_n, c_n) of a whole stack of B sequences by torch's own function, with its own autograd."""
    lstm = options.cell == "lstm"
    if hx is None:
        states, rows, R = options.num_layers * options.directions, *params[1].shape
        hx = x.new_zeros(states, B, R)
        if lstm:
            hx = (hx, hx if rows == 4 * R else x.new_zeros(states, B, rows // 4))
    layout = (options.batch_first,) if batch_sizes is None else ()
    result = _TORCHS[options.cell](
        x, *(() if batch_sizes is None else (batch_sizes,)), hx, params, options.has_biases, options.num_layers,
        float(options.dropout), options.train, options.bidirectional, *layout,
    )  # fmt: skip
    return result if lstm else (*result, None)


_TORCHS_CELLS = {
    "lstm": torch.lstm_cell,
    "gru": torch.gru_cell,
    "rnn_tanh": torch.rnn_tanh_cell,
    "rnn_relu": torch.rnn_relu_cell,
}


def torchs_cell(
    cell: str,
    x: Tensor,
    hx: Tensor | tuple[Tensor, Tensor] | None,
    params: tuple[Tensor | None, ...] | list[Tensor],
) -> Tensor | tuple[Tensor, Tensor]:
    """h', or (h', c'), of one step by torch's own function."""
    if hx is None:
        h = x.new_zeros(x.shape[0], params[1].shape[-1])
        hx = (h, h) if cell == "lstm" else h
    return _TORCHS_CELLS[cell](x, hx, *params)
