"""A stack of layers: checked, planned, its masks drawn, run layer by layer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from ... import dispatch
from ...transforms import autocast, obstacle
from . import backends, checks
from .backends import Plan
from .call import Call
from .layer import run_layer
from .masks import dropout_between_layers, recurrent_mask, zoneout_mask
from .options import Options
from .plans import quickly_remembered, remembered, signature
from .reference import accumulate_dtype
from .refusals import not_torchs
from .steps import Context


class Inputs(NamedTuple):
    """The tensors of a call, under autocast in its dtype, and what only they say."""

    x: Tensor
    h_0: Tensor | None
    c_0: Tensor | None
    params: list[Tensor]
    batch_sizes: Tensor | None
    lengths: Tensor | None
    reset: Tensor | None
    packed_batch: int | None  # B of packed rows
    mixed: bool  # autocast to 16 bits: c stays float32
    gradient: bool

    @property
    def floating(self) -> tuple[Tensor | None, ...]:
        return (self.x, self.h_0, self.c_0, *self.params)


class Decided(NamedTuple):
    """What follows from the metadata of a call."""

    plan: Plan
    call: Call
    options: Options


def run_stack(
    op: str,
    x: Tensor,
    hx: checks.HX,
    params: Iterable[Tensor],
    options: Options,
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(output, h_n, c_n) of `fastdl.ops.<op>`; c_n is None where the cell has none."""
    if batch_sizes is None and lengths is None and reset is None and type(params) is list:
        found = _quickly(op, x, hx, params, options)
        if found is not None:
            return found
    inputs = sequence_inputs(x, hx, params, options, batch_sizes, lengths, reset)
    reason = obstacle(*inputs.floating)
    key = (
        op, options, reason, inputs.packed_batch, inputs.mixed, inputs.gradient,
        signature(batch_sizes, lengths, reset, *inputs.floating),
    )  # fmt: skip
    plan, call, options = remembered(key, lambda: _decide(op, inputs, options, reason))
    inputs = _ready(inputs, call)
    if plan.delegated:
        x, h_0, c_0 = inputs.x, inputs.h_0, inputs.c_0
        hx = h_0 if c_0 is None else (h_0, c_0.to(x.dtype))
        output, h_n, c_n = backends.delegate(x, hx, inputs.params, inputs.batch_sizes, call.sizes.B, options)
    else:
        output, h_n, c_n = _layers(plan, inputs, call, options)
    if options.cell != "lstm":
        return output, h_n, None
    return output, h_n, c_n.to(torch.float32 if inputs.mixed else output.dtype)


def _quickly(
    op: str, x: Tensor, hx: checks.HX, params: list[Tensor], options: Options
) -> tuple[Tensor, Tensor, Tensor | None] | None:
    """What `run_stack` returns for dense sequences without random masks, where all that is to be asked is remembered;
    None: look closer.
    """
    if options.train and (options.dropout or options.recurrent_dropout or options.zoneout):
        return None
    h_0, c_0 = checks.split_states(hx, options.cell)

    def inputs(recorded: bool) -> Inputs:
        return Inputs(x, h_0, c_0, params, None, None, None, None, False, recorded)

    def decide(recorded: bool) -> Decided:
        return _decide(op, inputs(recorded), options, None)

    decided = quickly_remembered((op, options), (x, *params), (h_0, c_0), decide)
    if decided is None:
        return None
    plan, call, described = decided
    if plan.delegated:
        hx = h_0 if c_0 is None else (h_0, c_0.to(x.dtype))
        return backends.delegate(x, hx, params, None, call.sizes.B, described)
    if call.gradient or plan.s.projected:
        output, h_n, c_n = _layers(plan, _ready(inputs(call.gradient), call), call, described)
    else:
        if c_0 is not None and x.itemsize == 2:
            c_0 = c_0.to(torch.float32)
        output, h_n, c_n = _infer(plan, x, h_0, c_0, params, call.num_layers)
    if options.cell != "lstm":
        return output, h_n, None
    return output, h_n, c_n if c_n.dtype is x.dtype else c_n.to(x.dtype)


def _infer(
    plan: Plan, x: Tensor, h_0: Tensor | None, c_0: Tensor | None, params: list[Tensor], num_layers: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(output, h_n, c_n): `_layers` without masks, gradient or dropout, 20 us sooner for each layer."""
    forward, D, each = backends.RAW[plan[:2]].forward, plan.s.directions, len(params) // num_layers
    ends = []
    for layer in range(num_layers):
        own, h, c = params, h_0, c_0
        if num_layers > 1:
            own = params[layer * each : (layer + 1) * each]
            h, c = (None if t is None else t[layer * D : (layer + 1) * D] for t in (h_0, c_0))
        x, *state, _, _, _ = forward(
            x, h, c, own, None, None, None, None, None, None, plan.packed, plan.zoneout, False
        )
        ends.append(state)
    if num_layers == 1:
        return x, *state
    h_n, c_n = zip(*ends, strict=True)
    return x, torch.cat(h_n), torch.cat(c_n) if plan.s.cell == "lstm" else c_n[0]


def sequence_inputs(
    x: Tensor,
    hx: checks.HX,
    params: Iterable[Tensor],
    options: Options,
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
) -> Inputs:
    h_0, c_0 = checks.split_states(hx, options.cell)
    params = checks.parameter_list(params)
    checks.check_kinds(x, params, batch_sizes=batch_sizes, lengths=lengths, reset=reset)
    x, h_0, *params = autocast(x, h_0, *params)
    mixed = is_mixed(x)
    if mixed and c_0 is not None:
        c_0 = c_0.to(torch.float32)
    tensors = (x, h_0, c_0, *params)
    gradient = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    packed_batch = None if batch_sizes is None else checks.packed_batch(batch_sizes, h_0)
    return Inputs(x, h_0, c_0, params, batch_sizes, lengths, reset, packed_batch, mixed, gradient)


def is_mixed(x: Tensor) -> bool:
    """Whether x is of a 16-bit type because of autocast."""
    if accumulate_dtype(x.dtype) is x.dtype or x.device.type == "meta":
        return False
    return torch.is_autocast_enabled(x.device.type)


def describe(inputs: Inputs, options: Options) -> tuple[Call, Options]:
    """Check everything, and say what the refusals see."""
    options = options.checked()
    x, batch_sizes, lengths, reset = inputs.x, inputs.batch_sizes, inputs.lengths, inputs.reset
    s = checks.find_structure(inputs.params, options)
    sizes = checks.check_sequence(
        x, inputs.h_0, inputs.c_0, inputs.params, s, options.num_layers, batch_sizes, inputs.packed_batch, lengths,
        reset,
    )  # fmt: skip
    zoneout_masks = options.train and options.zoneout != (0.0, 0.0)
    call = Call(
        s, sizes, options.num_layers, x.dtype, x.device, False, batch_sizes is not None, lengths is not None,
        reset is not None, options.train and options.recurrent_dropout > 0, options.zoneout, zoneout_masks,
        options.dropout if options.train else 0.0, inputs.gradient, options.checkpoint, torch.compiler.is_compiling(),
    )  # fmt: skip
    return call, options


def _decide(op: str, inputs: Inputs, options: Options, reason: str | None) -> Decided:
    call, options = describe(inputs, options)
    if reason is None:
        choice = dispatch.choose(op, call, *inputs.floating)
    else:
        dispatch.require_reference(op, reason)
        # an exporter knows torch's layers; the steps one by one would fix T
        exported = reason == "the call is being exported" and not_torchs(call) is None
        choice = dispatch.Choice("reference", "aten" if exported else "torch")
    return Decided(backends.make_plan(choice, call), call, options)


def _ready(inputs: Inputs, call: Call) -> Inputs:
    """Values checked where they lie on the host; lengths on the device, c in the dtype it is kept in."""
    x, lengths, batch_sizes, T = inputs.x, inputs.lengths, inputs.batch_sizes, call.sizes.T
    if batch_sizes is not None:
        if call.compiling:
            torch._assert_async(batch_sizes[0] == call.sizes.B, "hx must have B = batch_sizes[0]")
        else:
            checks.check_batch_sizes(batch_sizes, x.shape[0], call.sizes.B)
    if lengths is not None:
        if lengths.device.type == "cpu" and not call.compiling and type(lengths) is Tensor:
            checks.check_length_values(lengths, T)
        lengths = lengths.to(x.device, torch.int64, non_blocking=True)
        if inputs.gradient:
            # a gradient of zero times NaN would be NaN
            steps = torch.arange(T, device=x.device)
            past = steps >= lengths[:, None] if call.s.batch_first else steps[:, None] >= lengths
            x = x.masked_fill(past[..., None], 0)
    c_0 = inputs.c_0
    if c_0 is not None:
        c_0 = c_0.to(accumulate_dtype(x.dtype))
    return inputs._replace(x=x, lengths=lengths, c_0=c_0)


def _layers(plan: Plan, inputs: Inputs, call: Call, options: Options) -> tuple[Tensor, Tensor, Tensor]:
    x, params, D = inputs.x, inputs.params, call.s.directions
    per_layer = len(params) // call.num_layers
    ends_h, ends_c = [], []
    for layer in range(call.num_layers):
        if layer and call.dropout:
            x = dropout_between_layers(x, call.dropout, call.s.batch_first and not call.packed)
        h_0, c_0 = (
            t if t is None or call.num_layers == 1 else t[layer * D : (layer + 1) * D]
            for t in (inputs.h_0, inputs.c_0)
        )
        if h_0 is None and call.packed:
            h_0, c_0 = _zero_states(x, call)
        own = params[layer * per_layer : (layer + 1) * per_layer]
        x, h_n, c_n = run_layer(plan, x, h_0, c_0, own, _context(inputs, call, options), inputs.gradient)
        ends_h.append(h_n)
        ends_c.append(c_n)
    if call.num_layers == 1:
        return x, h_n, c_n
    return x, torch.cat(ends_h), torch.cat(ends_c) if options.cell == "lstm" else c_n


def _zero_states(x: Tensor, call: Call) -> tuple[Tensor, Tensor | None]:
    """A layer's initial states for packed rows, which do not say how many sequences they are."""
    D, (_, B, _, H, R) = call.s.directions, call.sizes
    c_0 = x.new_zeros(D, B, H, dtype=accumulate_dtype(x.dtype)) if call.s.cell == "lstm" else None
    return x.new_zeros(D, B, R), c_0


def _context(inputs: Inputs, call: Call, options: Options) -> Context:
    x, D, (_, B, _, H, R) = inputs.x, call.s.directions, call.sizes
    context = Context(inputs.batch_sizes, inputs.lengths, inputs.reset, zoneout=options.zoneout)
    if not options.train:
        return context
    rows = x.shape[:-1]
    return context._replace(
        recurrent_mask=recurrent_mask(x, (D, B, R), options.recurrent_dropout),
        zoneout_h=zoneout_mask(x, (*rows, D * R), options.zoneout[0]),
        zoneout_c=zoneout_mask(x, (*rows, D * H), options.zoneout[1]),
    )
