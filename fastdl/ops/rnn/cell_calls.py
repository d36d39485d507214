"""One step's tensors and arguments: checked, described for the refusals, and what was decided for them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ... import dispatch
from ...transforms import autocast
from . import backends, checks
from .backends import Plan
from .call import Call
from .options import probability, zoneout_pair
from .stack import is_mixed
from .structure import Structure

# The order in which the parameters of a cell travel here; every one of them but weight_hr, as in Structure.names().
PARAMETERS = (
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


def inputs(
    x: Tensor, hx: checks.HX, params: tuple[Tensor | None, ...], reset: Tensor | None, cell: str
) -> Step:
    h, c = checks.split_states(hx, cell)
    for name, t in (("x", x), ("weight_ih", params[0]), ("weight_hh", params[1])):
        if not isinstance(t, Tensor):
            raise TypeError(f"{name} must be a Tensor, got {type(t).__name__}")
    checks.check_dense(x)
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


def describe(cell: str, step: Step, variants: Variants) -> Call:
    """Check everything, and say what the refusals see."""
    x, h, c, params, reset, _, gradient = step
    named = dict(zip(PARAMETERS, params, strict=True))
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


def decide(op: str, cell: str, step: Step, variants: Variants, reason: str | None) -> Decided:
    call = describe(cell, step, variants)
    if reason is None:
        choice = dispatch.choose(op, call, *step.floating)
    else:
        dispatch.require_reference(op, reason)
        choice = dispatch.Choice("reference", "torch")
    return Decided(backends.make_plan(choice, call), call)
