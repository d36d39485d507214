"""Samples of the recurrent layers, run by any plan: outputs and gradients beside their fp64 truth."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..dispatch import Candidate, Choice
from ..ops.rnn import backends
from ..ops.rnn.backends import Plan, make_plan
from ..ops.rnn.call import Call
from ..ops.rnn.checks import Sizes
from ..ops.rnn.layer import run_layer
from ..ops.rnn.masks import recurrent_mask, zoneout_mask
from ..ops.rnn.options import Options
from ..ops.rnn.reference import accumulate_dtype, reference_layer
from ..ops.rnn.refusals import CANDIDATES, not_torchs
from ..ops.rnn.steps import Context
from ..ops.rnn.structure import Structure
from .checked_op import CheckedOp, Run, once_for_all_plans, reports_by_draws
from .error_rule import ErrorReport

PARAMETERS = tuple(Structure("lstm", has_projection=True, layer_norm=True, peephole=True).names())
NAMES = (
    "output", "h_n", "c_n", "grad_input", "grad_h_0", "grad_c_0", *(f"grad_{name}" for name in PARAMETERS),
)  # fmt: skip


class Inputs(NamedTuple):
    """The tensors of a layer; gradients are taken by those that are floating point."""

    x: Tensor
    h_0: Tensor | None
    c_0: Tensor | None
    params: list[Tensor]
    context: Context

    def to(self, device: str) -> Inputs:
        """On a device; batch_sizes stay on the host."""
        moved = Context(self.context.batch_sizes, *map(_to(device), self.context[1:6]), self.context.zoneout)
        return Inputs(*map(_to(device), self[:3]), [p.to(device) for p in self.params], moved)


def _to(device: str) -> Callable[[Tensor | None], Tensor | None]:
    return lambda t: None if t is None else t.to(device)


@dataclass(frozen=True)
class Sample:
    """One layer and one batch. `layout`: "time", "batch" (batch_first), "packed" or "lengths"."""

    cell: str
    T: int
    B: int
    I: int  # noqa: E741, torch's letter
    H: int
    directions: int = 1
    layout: str = "time"
    bias: bool = True
    projection: int = 0
    states: bool = True
    layer_norm: bool = False
    peephole: bool = False
    zoneout: tuple[float, float] = (0.0, 0.0)
    train: bool = True
    recurrent_dropout: float = 0.0
    reset: bool = False
    checkpoint: bool = False
    one_step: bool = False

    def decided(self, dtype: torch.dtype) -> bool:
        """Whether gradients can be compared: in 16 bits rounding decides which units of a ReLU near zero are open,
        and each of them sends a whole gradient back."""
        return self.cell != "rnn_relu" or dtype in (torch.float32, torch.float64)

    def __str__(self) -> str:
        words = [self.cell, f"{self.T}x{self.B}x{self.I}x{self.H}", self.layout]
        words += ["reverse"] if self.directions == 2 else []
        words += [f"proj{self.projection}"] if self.projection else []
        words += [] if self.bias else ["nobias"]
        words += [] if self.states else ["nostates"]
        words += ["zoneout" if self.train else "expectation"] if any(self.zoneout) else []
        flags = ("layer_norm", "peephole", "recurrent_dropout", "reset", "checkpoint", "one_step")
        return "-".join(words + [name for name in flags if getattr(self, name)])

    @property
    def s(self) -> Structure:
        return Structure(
            self.cell, self.directions, self.layout == "batch", self.bias, self.projection > 0, self.layer_norm,
            self.peephole,
        )  # fmt: skip

    @property
    def R(self) -> int:  # noqa: N802, the letter of the shapes
        return self.projection or self.H

    def inputs(self, dtype: torch.dtype, seed: int = 0) -> Inputs:
        """Drawn in fp32, rounded to the dtype. Masks are the same in every dtype."""
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int, scale: float = 1.0) -> Tensor:
            return (torch.randn(shape, generator=generator) * scale).to(dtype)

        lengths = torch.randint(0, self.T + 1, (self.B,), generator=generator)
        batch_sizes, rows = None, (self.T, self.B)
        if self.layout == "packed":
            counts = lengths.clamp(min=1).sort(descending=True).values
            counts[0] = self.T
            batch_sizes = torch.tensor([int((counts > t).sum()) for t in range(self.T)], dtype=torch.int64)
            rows = (int(batch_sizes.sum()),)
        elif self.layout == "batch":
            rows = (self.B, self.T)
        D, B, H, R = self.directions, self.B, self.H, self.R
        states = [draw(D, B, R), draw(D, B, H)] if self.states else [None, None]
        if batch_sizes is not None and states[0] is None:
            states[0] = torch.zeros(D, B, R, dtype=dtype)
        params = [self._parameter(draw, name, shape) for name, shape in self._shapes() * D]
        reset = torch.rand(rows, generator=generator) < 0.2 if self.reset else None
        x = draw(*rows, self.I)
        context = Context(batch_sizes, lengths if self.layout == "lengths" else None, reset)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            context = self._with_masks(context, x, rows)
        return Inputs(x, states[0], states[1] if self.cell == "lstm" else None, params, context)

    def _shapes(self) -> list[tuple[str, tuple[int, ...]]]:
        return list(self.s.shapes(self.I, self.H, self.R).items())

    def _parameter(self, draw: Callable[..., Tensor], name: str, shape: tuple[int, ...]) -> Tensor:
        if name.startswith("weight_norm"):
            return 1 + draw(*shape, scale=0.1)
        return draw(*shape, scale=self.H**-0.5)

    def _with_masks(self, context: Context, x: Tensor, rows: tuple[int, ...]) -> Context:
        context = context._replace(zoneout=self.zoneout)
        if not self.train:
            return context
        D, B, H, R = self.directions, self.B, self.H, self.R
        return context._replace(
            recurrent_mask=recurrent_mask(x, (D, B, R), self.recurrent_dropout),
            zoneout_h=zoneout_mask(x, (*rows, D * R), self.zoneout[0]),
            zoneout_c=zoneout_mask(x, (*rows, D * H), self.zoneout[1]),
        )

    def call(self, dtype: torch.dtype, device: str = "cpu", gradient: bool = True) -> Call:
        """What the refusals see."""
        masks = self.train and self.zoneout != (0.0, 0.0)
        return Call(
            self.s, Sizes(self.T, self.B, self.I, self.H, self.R), 1, dtype, torch.device(device), self.one_step,
            self.layout == "packed", self.layout == "lengths", self.reset, self.recurrent_dropout > 0 and self.train,
            self.zoneout, masks, 0.0, gradient, self.checkpoint, False,
        )  # fmt: skip


# fmt: off
SAMPLES = (
    Sample("lstm", 5, 29, 4, 8),
    Sample("lstm", 7, 5, 9, 33, directions=2),  # odd sizes
    Sample("lstm", 4, 17, 16, 64, layout="batch"),
    Sample("lstm", 9, 6, 10, 24, layout="packed", directions=2),
    Sample("lstm", 8, 6, 10, 24, layout="lengths", directions=2),
    Sample("lstm", 6, 4, 8, 20, projection=7, directions=2),
    Sample("lstm", 6, 4, 8, 20, bias=False, states=False, layout="lengths"),
    Sample("lstm", 6, 4, 8, 20, layer_norm=True, zoneout=(0.2, 0.3)),
    Sample("lstm", 6, 4, 8, 20, layer_norm=True, peephole=True, projection=5, layout="packed", directions=2),
    Sample("lstm", 6, 4, 8, 20, peephole=True, zoneout=(0.1, 0.4), train=False, reset=True),
    Sample("lstm", 6, 5, 8, 20, recurrent_dropout=0.4, zoneout=(0.2, 0.0), layout="packed", projection=6),
    Sample("lstm", 6, 4, 8, 20, checkpoint=True, reset=True, layout="batch", peephole=True, layer_norm=True),
    Sample("lstm", 40, 1, 32, 96),  # one sequence
    Sample("lstm", 5, 40, 16, 100),  # rows and units that fill AMX's tiles
    Sample("gru", 5, 3, 4, 8),
    Sample("gru", 7, 5, 9, 33, directions=2),
    Sample("gru", 4, 17, 16, 64, layout="batch"),
    Sample("gru", 9, 6, 10, 24, layout="packed", directions=2),
    Sample("gru", 8, 6, 10, 24, layout="lengths", directions=2, states=False),
    Sample("gru", 6, 4, 8, 20, layer_norm=True, zoneout=(0.2, 0.0), directions=2),
    Sample("gru", 6, 4, 8, 20, layer_norm=True, recurrent_dropout=0.3, reset=True, layout="packed", bias=False),
    Sample("gru", 9, 8, 8, 20, zoneout=(0.3, 0.0), train=False, layout="batch", checkpoint=True),
    Sample("gru", 40, 1, 32, 96),
    Sample("gru", 4, 35, 16, 100, directions=2),
    Sample("rnn_tanh", 7, 5, 9, 33, directions=2),
    Sample("rnn_tanh", 9, 6, 10, 24, layout="packed", directions=2, layer_norm=True),
    Sample("rnn_tanh", 6, 4, 8, 20, layout="lengths", zoneout=(0.3, 0.0), recurrent_dropout=0.2, reset=True),
    Sample("rnn_relu", 7, 5, 9, 33, layout="batch"),
    Sample("rnn_relu", 5, 4, 8, 17, layout="packed", bias=False, layer_norm=True, zoneout=(0.2, 0.0), train=False),
)
CELL_SAMPLES = (
    Sample("lstm", 1, 5, 9, 33, one_step=True),
    Sample("lstm", 1, 1, 16, 64, one_step=True, bias=False, states=False),
    Sample("lstm", 1, 4, 8, 20, one_step=True, layer_norm=True, peephole=True, zoneout=(0.2, 0.3)),
    Sample("gru", 1, 5, 9, 33, one_step=True),
    Sample("gru", 1, 1, 16, 64, one_step=True, bias=False, states=False),
    Sample("gru", 1, 4, 8, 20, one_step=True, layer_norm=True, zoneout=(0.2, 0.0)),
    Sample("rnn_tanh", 1, 5, 9, 33, one_step=True),
    Sample("rnn_relu", 1, 4, 8, 20, one_step=True, layer_norm=True, zoneout=(0.2, 0.0), train=False),
)
# fmt: on


def run_plan(sample: Sample, plan: Plan, dtype: torch.dtype, seed: int, *, device: str = "cpu") -> Run:
    """The sample by one backend and algorithm (`plan_of`)."""

    def compute(q: Inputs) -> tuple[Tensor, Tensor, Tensor | None]:
        if plan.delegated:
            return _torchs(sample, q)
        return run_layer(plan, *q[:4], q.context, True)

    return _run(sample, dtype, seed, compute, device)


def run_eager(sample: Sample, dtype: torch.dtype, seed: int, *, device: str = "cpu") -> Run:
    """The sample by eager PyTorch in the dtype: torch's layer, or a Python loop over what torch does not have."""

    def compute(q: Inputs) -> tuple[Tensor, Tensor, Tensor | None]:
        if not_torchs(sample.call(dtype)) is None:
            return _torchs(sample, q)
        return reference_layer(q.x, q.h_0, q.c_0, q.params, q.context, sample.s)

    return _run(sample, dtype, seed, compute, device)


def run_truth(sample: Sample, dtype: torch.dtype, seed: int) -> tuple[Tensor | None, ...]:
    """The reference in fp64, on the sample's inputs as rounded to `dtype`."""

    def compute(q: Inputs) -> tuple[Tensor, Tensor, Tensor | None]:
        return reference_layer(q.x, q.h_0, q.c_0, q.params, q.context, sample.s)

    return _values(sample, _double(sample.inputs(dtype, seed)), dtype, seed, compute)


_truths = functools.lru_cache(maxsize=512)(run_truth)


def _torchs(sample: Sample, q: Inputs) -> tuple[Tensor, Tensor, Tensor | None]:
    """torch's layer, which has no c_n for a cell without c."""
    S = sample.s
    h_0 = q.x.new_zeros(S.directions, sample.B, sample.R) if q.h_0 is None else q.h_0
    c_0 = q.c_0
    if sample.cell == "lstm":
        c_0 = q.x.new_zeros(S.directions, sample.B, sample.H) if c_0 is None else c_0
    hx = h_0 if sample.cell != "lstm" else (h_0, c_0.to(h_0.dtype))
    options = Options(S.cell, S.has_bias, 1, 0.0, sample.train, S.directions == 2, S.batch_first)
    return backends.delegate(q.x, hx, q.params, q.context.batch_sizes, sample.B, options)


def _double(q: Inputs) -> Inputs:
    floating = [None if t is None else t.double() for t in q[:3]]
    mask = q.context.recurrent_mask
    context = q.context._replace(recurrent_mask=None if mask is None else mask.double())
    return Inputs(*floating, [p.double() for p in q.params], context)


def _run(sample: Sample, dtype: torch.dtype, seed: int, compute: Callable, device: str) -> Run:
    inputs = sample.inputs(dtype, seed)
    if inputs.c_0 is not None:
        inputs = inputs._replace(c_0=inputs.c_0.to(accumulate_dtype(dtype)))
    values = _values(sample, inputs.to(device), dtype, seed, compute)
    return Run(values, _truths(sample, dtype, seed))


def _values(
    sample: Sample, q: Inputs, dtype: torch.dtype, seed: int, compute: Callable
) -> tuple[Tensor | None, ...]:
    """In the order of NAMES; of two directions the parameters' gradients one after the other."""
    for t in (*q[:3], *q.params):
        if t is not None:
            t.requires_grad_()
    results = compute(q)[: 3 if sample.cell == "lstm" else 2]
    generator = torch.Generator().manual_seed(seed + 1000)
    grads = [torch.randn(t.shape, generator=generator).to(dtype).to(t) for t in results]
    leaves = [t for t in (*q[:3], *q.params) if t is not None]
    found = iter(torch.autograd.grad(results, leaves, grads))
    states = [None if t is None else next(found) for t in q[:3]]
    by_name: dict[str, list[Tensor]] = {}
    for name, _ in sample._shapes() * sample.directions:
        by_name.setdefault(name, []).append(next(found).flatten())
    parameters = [torch.cat(by_name[name]) if name in by_name else None for name in PARAMETERS]
    ends = [*results, None] if len(results) == 2 else results
    every = (*ends, *states, *parameters)
    return tuple(
        None if t is None else t.detach().to(dtype if q.x.dtype == dtype else t.dtype).cpu() for t in every
    )


def plan_of(
    sample: Sample, choice: Choice, dtype: torch.dtype, device: str = "cpu", gradient: bool = True
) -> Plan:
    """The plan of a choice for the sample's layer."""
    return make_plan(choice, sample.call(dtype, device, gradient))


_eager = once_for_all_plans(run_eager)


def reports(sample: Sample, plan: Plan, dtype: torch.dtype, device: str = "cpu") -> dict[str, ErrorReport]:
    """The error rule's report for the outputs and every gradient of one sample under one plan."""
    return reports_by_draws(
        lambda seed: run_plan(sample, plan, dtype, seed, device=device),
        lambda seeds: _eager(sample, dtype, device, seeds),
        NAMES,
        dtype,
        lambda quantity: plan.algorithm,
    )


def _plan(sample: Sample, candidate: Candidate, dtype: torch.dtype, device: str) -> Plan | None:
    if not sample.decided(dtype):
        return None
    q = sample.inputs(dtype).to(device)
    call = sample.call(dtype, device)
    if candidate.refusal(call, *q[:3], *q.params) is not None:
        return None
    return make_plan(Choice(candidate.backend, candidate.algorithm), call)


def _algorithm(plan: Plan, quantity: str) -> str:
    return plan.algorithm


def _op(name: str, samples: tuple[Sample, ...]) -> CheckedOp:
    own = tuple(sample for sample in samples if sample.cell.startswith(name.removesuffix("_cell")))
    return CheckedOp(name, own, CANDIDATES, _plan, reports, _algorithm)


OPS = (
    *(_op(name, SAMPLES) for name in ("lstm", "gru", "rnn")),
    *(_op(name, CELL_SAMPLES) for name in ("lstm_cell", "gru_cell", "rnn_cell")),
)
