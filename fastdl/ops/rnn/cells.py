"""The public ops of one step: lstm_cell, gru_cell, rnn_cell. The raw operator is that of sequences, with T = 1."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ... import dispatch
from ...transforms import autocast, obstacle
from . import backends, checks
from .backends import Plan
from .layer import run_layer
from .masks import recurrent_mask, zoneout_mask
from .op import rnn_cell_name
from .options import probability, zoneout_pair
from .plans import remembered, signature
from .reference import accumulate_dtype
from .refusals import CANDIDATES, Call, quickly_torch
from .stack import is_mixed
from .steps import Context
from .structure import GATES, Structure


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
        found = _by_torch("lstm", x, hx, own)
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
        found = _by_torch(cell, x, h, own)
        if found is not None:
            return found
    return _step(op, cell, x, h, (*own, None, *norms, None, None), reset, variants)[0]


def _by_torch(
    cell: str, x: Tensor, hx: checks.HX, own: tuple[Tensor | None, ...]
) -> Tensor | tuple[Tensor, Tensor] | None:
    """The step by torch's own cell where that is what dispatch would choose; None: look closer."""
    try:
        quick = quickly_torch(cell, x, *own) and _broadcasts_nothing(cell, hx, *own)
        return backends.torchs_cell(cell, x, hx, own) if quick else None
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
        return None  # the checks say what does not fit


def _broadcasts_nothing(
    cell: str,
    hx: checks.HX,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
) -> bool:
    """Whether the shapes and the dtype of c, which torch's cell would broadcast or promote, are as they must be."""
    rows, H = weight_hh.shape
    if rows != GATES[cell] * H or weight_ih.shape[0] != rows:
        return False
    if bias_ih is not None and not bias_ih.shape == bias_hh.shape == (rows,):
        return False
    if hx is None:
        return True
    if cell != "lstm":
        return hx.dim() == 2
    h, c = hx
    return h.dim() == 2 and c.shape == h.shape and c.dtype is h.dtype


# The order in which the parameters of a cell travel here; every one of them but weight_hr, as in Structure.names().
_NAMES = (
    "weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_peephole", "weight_norm_ih", "weight_norm_hh",
    "weight_norm_c", "bias_norm_c",
)  # fmt: skip


class Variants(NamedTuple):
    """Everything of a call that is not a tensor."""

    zoneout: float | tuple[float, float]
    recurrent_dropout: float
    train: bool


class Step(NamedTuple):
    """The tensors of a call, under autocast in its dtype."""

    x: Tensor
    h: Tensor | None
    c: Tensor | None
    params: tuple[Tensor | None, ...] | list[Tensor | None]
    reset: Tensor | None
    mixed: bool
    gradient: bool

    @property
    def floating(self) -> tuple[Tensor | None, ...]:
        return (self.x, self.h, self.c, *self.params)


class Decided(NamedTuple):
    """What follows from the metadata of a call."""

    plan: Plan
    call: Call


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
    step = _inputs(x, hx, params, reset, cell)
    x, h, c, params, _, mixed, gradient = step
    reason = obstacle(x, h, c, *params)
    key = (op, cell, variants, mixed, gradient, reason, signature(x, h, c, reset, *params))
    plan, call = remembered(key, lambda: _decide(op, cell, step, variants, reason))
    given = [t for t in params if t is not None]
    if plan.delegated:
        result = backends.torchs_cell(cell, x, h if c is None else (h, c.to(x.dtype)), given)
        h, c = result if cell == "lstm" else (result, result)
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
    elif not step.gradient and not plan.s.projected:
        # what run_layer would do, 3 us sooner
        output, _, c, *_ = backends.RAW[plan[:2]].forward(
            x, h, c, params, None, None, None, None, None, None, plan.packed, plan.zoneout, False
        )
        return output[0], c[0] if call.s.cell == "lstm" else c
    output, _, c = run_layer(plan, x, h, c, params, context, step.gradient)
    return output[0], c[0] if call.s.cell == "lstm" else c


def _inputs(
    x: Tensor, hx: checks.HX, params: tuple[Tensor | None, ...], reset: Tensor | None, cell: str
) -> Step:
    h, c = checks.split_states(hx, cell)
    for name, t in (("x", x), ("weight_ih", params[0]), ("weight_hh", params[1])):
        if not isinstance(t, Tensor):
            raise TypeError(f"{name} must be a Tensor, got {type(t).__name__}")
    if reset is not None and not isinstance(reset, Tensor):
        raise TypeError(f"reset must be a Tensor or None, got {type(reset).__name__}")
    mixed = False
    if x.device.type != "meta" and torch.is_autocast_enabled(x.device.type):
        x, h, *params = autocast(x, h, *params)
        mixed = is_mixed(x)
        if mixed and c is not None:
            c = c.to(torch.float32)
    gradient = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, h, c, *params))
    return Step(x, h, c, params, reset, mixed, gradient)


def _describe(cell: str, step: Step, variants: Variants) -> Call:
    """Check everything, and say what the refusals see."""
    x, h, c, params, reset, _, gradient = step
    named = dict(zip(_NAMES, params, strict=True))
    for name, t in named.items():
        if t is not None and not isinstance(t, Tensor):
            raise TypeError(f"{name} must be a Tensor or None, got {type(t).__name__}")
    _together(named, "bias_ih", "bias_hh")
    norms = (
        "weight_norm_ih",
        "weight_norm_hh",
        *(("weight_norm_c", "bias_norm_c") if cell == "lstm" else ()),
    )
    _together(named, *norms)
    s = Structure(
        cell, has_bias=named["bias_ih"] is not None, layer_norm=named["weight_norm_ih"] is not None,
        peephole=named["weight_peephole"] is not None,
    )  # fmt: skip
    given = [t for t in params if t is not None]
    checks.check_floating(x, hx=(h, c), params=given)
    if x.dim() != 2:
        raise ValueError(f"x must have shape [B, I], got {list(x.shape)}")
    H, R = checks.check_parameters(given, s, x.shape[1])
    for name, t in (("h", h), ("c", c)):
        if t is not None and tuple(t.shape) != (x.shape[0], H):
            raise ValueError(f"{name} must have shape [B, H] = {[x.shape[0], H]}, got {list(t.shape)}")
    if reset is not None:
        checks.check_mask("reset", reset, x, (x.shape[0],))
    zoneout, train = zoneout_pair(variants.zoneout, cell), variants.train
    probability("recurrent_dropout", variants.recurrent_dropout)
    return Call(
        s, checks.Sizes(1, x.shape[0], x.shape[1], H, R), 1, x.dtype, x.device, True, False, False, reset is not None,
        train and variants.recurrent_dropout > 0, zoneout, train and zoneout != (0.0, 0.0), 0.0, gradient, False,
        torch.compiler.is_compiling(),
    )  # fmt: skip


def _together(named: dict[str, Tensor | None], *names: str) -> None:
    given = [name for name in names if named[name] is not None]
    if given and len(given) != len(names):
        missing = [name for name in names if name not in given]
        raise ValueError(f"{', '.join(names)} go together: {', '.join(missing)} missing")


def _decide(op: str, cell: str, step: Step, variants: Variants, reason: str | None) -> Decided:
    call = _describe(cell, step, variants)
    if reason is None:
        choice = dispatch.choose(op, call, *step.floating)
    else:
        dispatch.require_reference(op, reason)
        choice = dispatch.Choice("reference", "torch")
    return Decided(backends.make_plan(choice, call), call)


def _dispatch_arguments(op: str) -> object:
    """What the refusals see of a call."""

    def arguments(
        x, hx, zoneout, recurrent_dropout, reset, train, nonlinearity="tanh", **params: Tensor | None
    ) -> tuple:
        cell = rnn_cell_name(nonlinearity) if op == "rnn_cell" else op.removesuffix("_cell")
        step = _inputs(x, hx, tuple([params.get(name) for name in _NAMES]), reset, cell)
        return _describe(cell, step, Variants(zoneout, recurrent_dropout, train)), *step.floating

    return arguments


for _function in (lstm_cell, gru_cell, rnn_cell):
    _name = _function.__name__
    dispatch.register(_name, CANDIDATES, _function, _dispatch_arguments(_name))
