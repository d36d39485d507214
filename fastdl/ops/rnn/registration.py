"""The raw operators: schemas, the reference behind every device without a kernel, shapes for fake tensors."""

from __future__ import annotations

from torch import Tensor

from ..raw_operators import define
from . import schema
from .reference import Sequence, accumulate_dtype, reference_sequence
from .reference_backward import reference_sequence_backward
from .steps import Context
from .structure import CELLS, Structure


def rnn_sequence(
    x: Tensor,
    h_0: Tensor | None,
    c_0: Tensor | None,
    weights: list[Tensor],
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    recurrent_mask: Tensor | None,
    zoneout_h: Tensor | None,
    zoneout_c: Tensor | None,
    structure: list[int],
    zoneout: list[float],
    save: bool,
) -> tuple[Tensor, ...]:
    s = Structure.unpack(structure)
    context = Context(batch_sizes, lengths, reset, recurrent_mask, zoneout_h, zoneout_c, tuple(zoneout))
    found = reference_sequence(x, h_0, c_0, weights, context, s)
    return found if save else (*found[:3], *(t.new_empty(0) for t in found[3:]))


def rnn_sequence_backward(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    h_0: Tensor | None,
    c_0: Tensor | None,
    weights: list[Tensor],
    output: Tensor,
    gates: Tensor,
    cells: Tensor,
    rstd: Tensor,
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    recurrent_mask: Tensor | None,
    zoneout_h: Tensor | None,
    zoneout_c: Tensor | None,
    structure: list[int],
    zoneout: list[float],
) -> tuple[Tensor, ...]:
    s = Structure.unpack(structure)
    context = Context(batch_sizes, lengths, reset, recurrent_mask, zoneout_h, zoneout_c, tuple(zoneout))
    saved = Sequence(output, output, output, gates, cells, rstd)
    return reference_sequence_backward(grad_output, grad_h_n, grad_c_n, h_0, c_0, weights, saved, context, s)


def fake_rnn_sequence(
    x: Tensor,
    h_0: Tensor | None,
    c_0: Tensor | None,
    weights: list[Tensor],
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    recurrent_mask: Tensor | None,
    zoneout_h: Tensor | None,
    zoneout_c: Tensor | None,
    structure: list[int],
    zoneout: list[float],
    save: bool,
) -> tuple[Tensor, ...]:
    s = Structure.unpack(structure)
    weight_hh = s.by_direction(weights)[0]["weight_hh"]
    R, H, D = weight_hh.shape[1], weight_hh.shape[0] // s.num_gates, s.directions
    batch = h_0.shape[1] if batch_sizes is not None else x.shape[0 if s.batch_first else 1]
    acc, rows, lstm = accumulate_dtype(x.dtype), x.shape[:-1], s.cell == "lstm"
    return (
        x.new_empty(*rows, D * R),
        x.new_empty(D, batch, R),
        x.new_empty(D, batch, H, dtype=acc) if lstm else x.new_empty(0, dtype=acc),
        x.new_empty(*rows, D * s.saved_width * H) if save else x.new_empty(0),
        x.new_empty(*rows, D * H, dtype=acc) if save and lstm else x.new_empty(0, dtype=acc),
        x.new_empty(*rows, D, dtype=acc) if save and s.layer_norm else x.new_empty(0, dtype=acc),
    )


def fake_rnn_sequence_backward(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    h_0: Tensor | None,
    c_0: Tensor | None,
    weights: list[Tensor],
    output: Tensor,
    gates: Tensor,
    cells: Tensor,
    rstd: Tensor,
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    recurrent_mask: Tensor | None,
    zoneout_h: Tensor | None,
    zoneout_c: Tensor | None,
    structure: list[int],
    zoneout: list[float],
) -> tuple[Tensor, ...]:
    s = Structure.unpack(structure)
    weight_hh = s.by_direction(weights)[0]["weight_hh"]
    R, H, D = weight_hh.shape[1], weight_hh.shape[0] // s.num_gates, s.directions
    batch = h_0.shape[1] if batch_sizes is not None else output.shape[0 if s.batch_first else 1]
    acc, lstm = accumulate_dtype(output.dtype), s.cell == "lstm"

    def rows(width: int) -> Tensor:
        return output.new_empty(*output.shape[:-1], D * width) if width else output.new_empty(0)

    return (
        rows(s.num_gates * H),
        rows(s.recurrent_grad_width * H),
        output.new_empty(D, batch, R),
        output.new_empty(D, batch, H, dtype=acc) if lstm else output.new_empty(0, dtype=acc),
        rows(R if s.has_projection else 0),
        rows(H if s.layer_norm and lstm else 0),
    )


def rnn_step(
    x: Tensor, h: Tensor | None, c: Tensor | None, weights: list[Tensor], cell: int
) -> tuple[Tensor, Tensor]:
    s = Structure(CELLS[cell], has_bias=len(weights) == 4, projected=False)
    h, c = (None if t is None else t.unsqueeze(0) for t in (h, c))
    found = reference_sequence(x.unsqueeze(0), h, c, weights, Context(), s)
    return found.output[0], found.c_n[0] if s.cell == "lstm" else found.c_n


def fake_rnn_step(
    x: Tensor, h: Tensor | None, c: Tensor | None, weights: list[Tensor], cell: int
) -> tuple[Tensor, Tensor]:
    size, acc = (x.shape[0], weights[1].shape[1]), accumulate_dtype(x.dtype)
    return x.new_empty(size), x.new_empty(size if CELLS[cell] == "lstm" else 0, dtype=acc)


library = define(schema.SCHEMAS, globals())
