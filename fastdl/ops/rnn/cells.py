"""The public ops of one step: lstm_cell, gru_cell, rnn_cell. The raw operator is that of sequences, with T = 1."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import dispatch
from ...transforms import obstacle
from . import backends, checks
from .backends import Plan
from .call import Call
from .cell_calls import PARAMETERS, Decided, Step, Variants, decide, describe, inputs
from .layer import run_layer
from .masks import recurrent_mask, zoneout_mask
from .op import rnn_cell_name
from .plans import quickly_remembered, remembered, signature
from .reference import accumulate_dtype
from .refusals import CANDIDATES
from .steps import Context


def lstm_cell(
    x: Tensor,
    hx: tuple[Tensor, Tensor] | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    *,
    weight_peephole: Tensor | None = None,
    weight_norm_ih: Tensor | None = None,
    weight_norm_hh: Tensor | None = None,
    weight_norm_c: Tensor | None = None,
    bias_norm_c: Tensor | None = None,
    zoneout: float | tuple[float, float] = (0.0, 0.0),
    recurrent_dropout: float = 0.0,
    reset: Tensor | None = None,
    train: bool = False,
) -> tuple[Tensor, Tensor]:
    """One step of `fastdl.ops.lstm`; differentiable.

    Args:
        x: [B, I]; float64, float32, bfloat16 or float16.
        hx: (h, c), each [B, H], or None: zero.
        weight_ih: [4H, I]. weight_hh: [4H, H]. bias_ih, bias_hh: [4H], both or none.
        weight_peephole: [3H], for i, f, o.
        weight_norm_ih, weight_norm_hh [4H], weight_norm_c, bias_norm_c [H]: layer norm; all or none.
        zoneout, train: as `fastdl.ops.lstm`.
        recurrent_dropout: probability of a zero in what the recurrent product takes of h; drawn anew in every call.
        reset: [B] bool; where True the step starts from zero states.

    Returns:
        (h', c'), each [B, H], in the dtype of x; under autocast in its dtype and c' float32.

    Raises:
        As `fastdl.ops.lstm`.

    Source: torch.nn.LSTMCell. Variants: see fastdl.nn.LSTM.

    >>> import fastdl, torch
    >>> cell = torch.nn.LSTMCell(3, 4)
    >>> h, c = fastdl.ops.lstm_cell(torch.ones(2, 3), None, *cell.parameters())
    >>> h.shape, c.shape
    (torch.Size([2, 4]), torch.Size([2, 4]))
    """
    own = (weight_ih, weight_hh, bias_ih, bias_hh)
    extras = (weight_peephole, weight_norm_ih, weight_norm_hh, weight_norm_c, bias_norm_c)
    plain = zoneout == (0.0, 0.0) and reset is None and not recurrent_dropout
    if plain and all(t is None for t in extras):
        found = _quickly("lstm_cell", "lstm", x, hx, own)
        if found is not None:
            return found
    return _step("lstm_cell", "lstm", x, hx, own + extras, reset, Variants(zoneout, recurrent_dropout, train))


def gru_cell(
    x: Tensor,
    hx: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    *,
    weight_norm_ih: Tensor | None = None,
    weight_norm_hh: Tensor | None = None,
    zoneout: float | tuple[float, float] = 0.0,
    recurrent_dropout: float = 0.0,
    reset: Tensor | None = None,
    train: bool = False,
) -> Tensor:
    """One step of `fastdl.ops.gru`; differentiable.

    Arguments and errors as `fastdl.ops.lstm_cell`, with hx = h [B, H] and 3H rows in the weights.

    Returns:
        h' [B, H], in the dtype of x; under autocast in its dtype.

    Source: torch.nn.GRUCell.

    >>> import fastdl, torch
    >>> cell = torch.nn.GRUCell(3, 4)
    >>> fastdl.ops.gru_cell(torch.ones(2, 3), None, *cell.parameters()).shape
    torch.Size([2, 4])
    """
    own, norms = (weight_ih, weight_hh, bias_ih, bias_hh), (weight_norm_ih, weight_norm_hh)
    variants = Variants(zoneout, recurrent_dropout, train)
    return _step_of_h("gru_cell", "gru", x, hx, own, norms, reset, variants)


def rnn_cell(
    x: Tensor,
    hx: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    *,
    nonlinearity: str = "tanh",
    weight_norm_ih: Tensor | None = None,
    weight_norm_hh: Tensor | None = None,
    zoneout: float | tuple[float, float] = 0.0,
    recurrent_dropout: float = 0.0,
    reset: Tensor | None = None,
    train: bool = False,
) -> Tensor:
    """One step of `fastdl.ops.rnn`; differentiable.

    Arguments and errors as `fastdl.ops.gru_cell`, with H rows in the weights; `nonlinearity` is "tanh" or "relu".

    Returns:
        h' [B, H], in the dtype of x; under autocast in its dtype.

    Source: torch.nn.RNNCell.

    >>> import fastdl, torch
    >>> cell = torch.nn.RNNCell(3, 4)
    >>> fastdl.ops.rnn_cell(torch.ones(2, 3), None, *cell.parameters()).shape
    torch.Size([2, 4])
    """
    own, norms = (weight_ih, weight_hh, bias_ih, bias_hh), (weight_norm_ih, weight_norm_hh)
    variants = Variants(zoneout, recurrent_dropout, train)
    return _step_of_h("rnn_cell", rnn_cell_name(nonlinearity), x, hx, own, norms, reset, variants)


def _step_of_h(
    op: str,
    cell: str,
    x: Tensor,
    h: Tensor | None,
    own: tuple[Tensor | None, ...],
    norms: tuple[Tensor | None, Tensor | None],
    reset: Tensor | None,
    variants: Variants,
) -> Tensor:
    """h' of a cell whose state is h alone."""
    plain = not variants.zoneout and reset is None and not variants.recurrent_dropout
    if plain and norms[0] is None and norms[1] is None:
        found = _quickly(op, cell, x, h, own)
        if found is not None:
            return found[0]
    return _step(op, cell, x, h, (*own, None, *norms, None, None), reset, variants)[0]


def _quickly(
    op: str, cell: str, x: Tensor, hx: checks.HX, own: tuple[Tensor | None, ...]
) -> tuple[Tensor, Tensor] | None:
    """What `_step` returns for a step without variants, where all that is to be asked is remembered; None: look
    closer."""
    h, c = checks.split_states(hx, cell)

    def decide_plain(recorded: bool) -> Decided:
        step = Step(x, h, c, (*own, None, None, None, None, None), None, False, recorded)
        return decide(op, cell, step, Variants((0.0, 0.0), 0.0, False), None)

    decided = quickly_remembered((op, cell), (x, *own[:2]), (h, c, *own[2:]), decide_plain)
    if decided is None:
        return None
    given = [t for t in own if t is not None]
    if decided.plan.delegated:
        return _by_torch(cell, x, h, c, given)
    if decided.call.gradient or decided.plan.s.projected:
        return None
    return _one_step(decided.plan, x, h, c, given)


def _by_torch(
    cell: str, x: Tensor, h: Tensor | None, c: Tensor | None, params: list[Tensor]
) -> tuple[Tensor, Tensor]:
    result = backends.torchs_cell(cell, x, h if c is None else (h, c.to(x.dtype)), params)
    return result if cell == "lstm" else (result, result)


def _one_step(
    plan: Plan, x: Tensor, h: Tensor | None, c: Tensor | None, params: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """(h', c') by the operator of a single step: that of sequences takes 20 us longer to be called."""
    if c is not None and x.itemsize == 2:
        c = c.to(torch.float32)
    h, c = torch.ops.fastdl.rnn_step.default(x, h, c, params, plan.packed[0])
    return h, c if c.dtype is x.dtype else c.to(x.dtype)


def _step(
    op: str,
    cell: str,
    x: Tensor,
    hx: checks.HX,
    params: tuple[Tensor | None, ...],
    reset: Tensor | None,
    variants: Variants,
) -> tuple[Tensor, Tensor]:
    """(h', c'); c' means nothing where the cell has none."""
    step = inputs(x, hx, params, reset, cell)
    x, h, c, params, _, mixed, gradient = step
    reason = obstacle(x, h, c, *params)
    key = (op, cell, variants, mixed, gradient, reason, signature(x, h, c, reset, *params))
    plan, call = remembered(key, lambda: decide(op, cell, step, variants, reason))
    given = [t for t in params if t is not None]
    if plan.delegated:
        h, c = _by_torch(cell, x, h, c, given)
    else:
        h, c = _by_layer(plan, call, step, given, variants.recurrent_dropout)
    if cell != "lstm":
        return h, h
    dtype = torch.float32 if mixed else x.dtype
    return h, c if c.dtype is dtype else c.to(dtype)


def _by_layer(
    plan: Plan, call: Call, step: Step, params: list[Tensor], recurrent_dropout: float
) -> tuple[Tensor, Tensor]:
    """(h', c') by a layer with one step; c' means nothing where the cell has none."""
    x = step.x.unsqueeze(0)
    h = None if step.h is None else step.h.unsqueeze(0)
    c = None if step.c is None else step.c.to(accumulate_dtype(x.dtype)).unsqueeze(0)
    context = Context(zoneout=call.zoneout)
    if call.zoneout_masks or call.recurrent_mask or call.reset:
        rows = (*x.shape[:2], call.sizes.H)
        context = context._replace(reset=None if step.reset is None else step.reset.unsqueeze(0))
        if call.recurrent_mask:
            context = context._replace(recurrent_mask=recurrent_mask(x, rows, recurrent_dropout))
        if call.zoneout_masks:
            context = context._replace(
                zoneout_h=zoneout_mask(x, rows, call.zoneout[0]),
                zoneout_c=zoneout_mask(x, rows, call.zoneout[1]),
            )
    output, _, c = run_layer(plan, x, h, c, params, context, step.gradient)
    return output[0], c[0] if call.s.cell == "lstm" else c


def _dispatch_arguments(op: str) -> object:
    """What the refusals see of a call."""

    def arguments(
        x, hx, zoneout, recurrent_dropout, reset, train, nonlinearity="tanh", **params: Tensor | None
    ) -> tuple:
        cell = rnn_cell_name(nonlinearity) if op == "rnn_cell" else op.removesuffix("_cell")
        step = inputs(x, hx, tuple([params.get(name) for name in PARAMETERS]), reset, cell)
        return describe(cell, step, Variants(zoneout, recurrent_dropout, train)), *step.floating

    return arguments


for _function in (lstm_cell, gru_cell, rnn_cell):
    _name = _function.__name__
    dispatch.register(_name, CANDIDATES, _function, _dispatch_arguments(_name))
