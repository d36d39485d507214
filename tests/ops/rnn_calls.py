"""Calls of the raw operators of rnn, drawn at random over its structures, and the reference's answers to them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

import fastdl.ops.rnn.registration  # noqa: F401
from fastdl.ops.rnn.reference import Sequence, accumulate_dtype, reference_sequence
from fastdl.ops.rnn.reference_backward import reference_sequence_backward
from fastdl.ops.rnn.steps import Context
from fastdl.ops.rnn.structure import Structure

KINDS = ("plain", "lengths", "packed", "reset", "masks", "expectation", "everything")
FORWARD = ("output", "h_n", "c_n", "gates", "cells", "rstd")
BACKWARD = ("grad_gates", "grad_gates_hh", "grad_h_0", "grad_c_0", "grad_projected", "grad_norm_c")


@dataclass(frozen=True)
class Call:
    """Inputs of one call, floating-point ones in `dtype`."""

    s: Structure
    x: Tensor
    h_0: Tensor | None
    c_0: Tensor | None
    weights: list[Tensor]
    context: Context

    @property
    def dtype(self) -> torch.dtype:
        return self.x.dtype

    def to(self, dtype: torch.dtype) -> Call:
        """The same values in another dtype, c_0 in its accumulate dtype."""
        mask = self.context.recurrent_mask
        return Call(
            self.s,
            self.x.to(dtype),
            None if self.h_0 is None else self.h_0.to(dtype),
            None if self.c_0 is None else self.c_0.to(accumulate_dtype(dtype)),
            [w.to(dtype) for w in self.weights],
            self.context._replace(recurrent_mask=None if mask is None else mask.to(dtype)),
        )

    def forward(self, save: bool = True) -> tuple[Tensor, ...]:
        """The operator's answer."""
        *tensors, zoneout = self.context
        return torch.ops.fastdl.rnn_sequence(
            self.x, self.h_0, self.c_0, self.weights, *tensors, self.s.packed(), list(zoneout), save
        )

    def backward(self, saved: Sequence, grads: Gradients) -> tuple[Tensor, ...]:
        """The operator's answer, given what forward saved."""
        *tensors, zoneout = self.context
        return torch.ops.fastdl.rnn_sequence_backward(
            *grads,
            self.h_0,
            self.c_0,
            self.weights,
            saved.output,
            *saved[3:],
            *tensors,
            self.s.packed(),
            list(zoneout),
        )

    def reference(self) -> Sequence:
        """The definition's answer."""
        with torch.no_grad():
            return reference_sequence(self.x, self.h_0, self.c_0, self.weights, self.context, self.s)

    def reference_backward(self, saved: Sequence, grads: Gradients) -> tuple[Tensor, ...]:
        """The definition's answer, given what forward saved."""
        with torch.no_grad():
            return reference_sequence_backward(
                *grads, self.h_0, self.c_0, self.weights, saved, self.context, self.s
            )


Gradients = tuple  # of output, h_n, c_n; None where there is none


def draw(
    s: Structure,
    kind: str = "plain",
    dtype: torch.dtype = torch.float32,
    *,
    T: int = 5,
    B: int = 7,
    I: int = 6,  # noqa: E741
    H: int = 13,
    R: int | None = None,
    seed: int = 0,
) -> Call:
    """A call of one kind, its values those of `dtype`."""
    generator = torch.Generator().manual_seed(seed)

    def values(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape, generator=generator) * scale).to(dtype)

    def flags(*shape: int, probability: float = 0.3) -> Tensor:
        return torch.rand(*shape, generator=generator) < probability

    D, G = s.directions, s.num_gates
    R = H if not s.has_projection else R or H - 4
    everything = kind == "everything"
    batch_sizes = None
    if kind == "packed" or (everything and not s.batch_first):
        sizes = torch.randint(1, B + 1, (T,), generator=generator).sort(descending=True).values
        batch_sizes = sizes.index_fill(0, torch.tensor([0]), B) if T else sizes
        rows: tuple[int, ...] = (int(batch_sizes.sum()),)
    else:
        rows = (B, T) if s.batch_first else (T, B)
    lengths = None
    if kind == "lengths" or (everything and batch_sizes is None):
        lengths = torch.randint(-1, T + 2, (B,), generator=generator)
    shapes = s.shapes(I, H, R)
    weights = [
        values(*shapes[name], scale=min(0.4, R**-0.5)) for _ in range(D) for name in s.sequence_names()
    ]
    masks = kind == "masks" or everything
    context = Context(
        batch_sizes,
        lengths,
        flags(*rows) if kind == "reset" or everything else None,
        (flags(D, B, R, probability=0.7) / 0.7).to(dtype) if masks else None,
        flags(*rows, D * R) if masks else None,
        flags(*rows, D * H) if masks and s.cell == "lstm" else None,
        (0.2, 0.1) if masks or kind == "expectation" else (0.0, 0.0),
    )
    c_0 = values(D, B, H).to(accumulate_dtype(dtype)) if s.cell == "lstm" else None
    x = values(*rows, D * G * H if s.projected else I)
    return Call(s, x, values(D, B, R), c_0, weights, context)


def draw_gradients(call: Call, saved: Sequence, seed: int = 1) -> Gradients:
    """Gradients of the outputs, of their dtypes."""
    generator = torch.Generator().manual_seed(seed)
    wanted = saved[: 3 if call.s.cell == "lstm" else 2]
    grads = [torch.randn(t.shape, generator=generator).to(t.dtype) for t in wanted]
    return tuple(grads) if call.s.cell == "lstm" else (*grads, None)


def structures() -> list[Structure]:
    """Every structure that exists."""
    found = []
    for cell, directions, *options in product(
        ("lstm", "gru", "rnn_tanh", "rnn_relu"), (1, 2), *[(False, True)] * 6
    ):
        s = Structure(cell, directions, *options)
        if (s.has_projection or s.peephole) and cell != "lstm":
            continue
        if s.layer_norm and not s.projected:
            continue
        found.append(s)
    return found


def without_states(call: Call) -> Call:
    """Initial states left out, where rows are not packed."""
    return call if call.context.batch_sizes is not None else replace(call, h_0=None, c_0=None)
