"""The backward recurrence of one layer in plain PyTorch, from what forward saved: the steps in reverse.

Gradients by weights follow from its results without a loop: see parameter_gradients.py.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .reference import Sequence, accumulate_dtype, normalise
from .steps import Context, Steps
from .structure import Structure


class SequenceGradients(NamedTuple):
    """The six outputs of rnn_sequence_backward."""

    grad_gates: Tensor
    grad_gates_hh: Tensor
    grad_h_0: Tensor
    grad_c_0: Tensor
    grad_projected: Tensor
    grad_norm_c: Tensor


class _Row(NamedTuple):
    """What a step gives besides the gradients of the states it started from."""

    gates: Tensor
    gates_hh: Tensor
    projected: Tensor
    norm_c: Tensor


def reference_sequence_backward(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    h_0: Tensor | None,
    c_0: Tensor | None,
    weights: list[Tensor],
    saved: Sequence,
    context: Context,
    s: Structure,
) -> SequenceGradients:
    """rnn_sequence_backward; of `saved`, h_n and c_n are not read."""
    by_direction = s.by_direction(weights)
    dtype, steps = saved.output.dtype, Steps(s, saved.output, context)
    acc = accumulate_dtype(dtype)
    R, H = by_direction[0]["weight_hh"].shape[1], by_direction[0]["weight_hh"].shape[0] // s.num_gates
    states = {}
    for name, given, width, kind in (("h_0", h_0, R, dtype), ("c_0", c_0, H, acc)):
        zeros = saved.output.new_zeros(s.directions, steps.batch, width, dtype=kind)
        states[name] = zeros if given is None else given
    rows, grad_h_0, grad_c_0 = [], [], []
    for d, w in enumerate(by_direction):
        dh = torch.zeros_like(states["h_0"][d], dtype=acc) if grad_h_n is None else grad_h_n[d].to(acc)
        dc = torch.zeros_like(states["c_0"][d]) if grad_c_n is None else grad_c_n[d].to(acc)
        direction = _Direction(steps, s, d, states["h_0"][d], states["c_0"][d], w, saved)
        grads = None if grad_output is None else steps.split(grad_output, d, R)
        found = {}
        for t in reversed(steps.order(d)):
            dh, dc, found[t] = direction.step(t, None if grads is None else grads[t].to(acc), dh, dc)
        rows.append([found[t] for t in range(len(found))])
        grad_h_0.append(dh)
        grad_c_0.append(dc)

    def joined(name: str, width: int) -> Tensor:
        if width == 0:
            return saved.output.new_empty(0)
        return steps.join([[getattr(row, name) for row in direction] for direction in rows], width, dtype)

    return SequenceGradients(
        joined("gates", s.num_gates * H),
        joined("gates_hh", s.recurrent_grad_width * H),
        torch.stack(grad_h_0).to(dtype),
        torch.stack(grad_c_0) if s.cell == "lstm" else saved.output.new_empty(0, dtype=acc),
        joined("projected", R if s.has_projection else 0),
        joined("norm_c", H if s.layer_norm and s.cell == "lstm" else 0),
    )


class _Direction:
    def __init__(
        self,
        steps: Steps,
        s: Structure,
        d: int,
        h_0: Tensor,
        c_0: Tensor,
        w: dict[str, Tensor],
        saved: Sequence,
    ) -> None:
        self.steps, self.s, self.d, self.context = steps, s, d, steps.context
        self.acc = accumulate_dtype(h_0.dtype)
        self.w = {name: value.to(self.acc) for name, value in w.items()}
        rows, R = w["weight_hh"].shape
        H = rows // s.num_gates
        self.gates = [t.to(self.acc) for t in steps.split(saved.gates, d, s.saved_width * H)]
        self.h_old = [t.to(self.acc) for t in steps.previous(steps.split(saved.output, d, R), h_0, d)]
        lstm = s.cell == "lstm"
        self.c_old = (
            steps.previous(steps.split(saved.cells, d, H), c_0, d) if lstm else [None] * len(self.gates)
        )
        self.rstd = steps.split(saved.rstd, d, 1) if s.layer_norm else [None] * len(self.gates)
        self.keep = [
            None if mask is None else steps.split(mask, d, width)
            for mask, width in ((self.context.zoneout_h, R), (self.context.zoneout_c, H))
        ]

    def step(self, t: int, grad_output: Tensor | None, dh: Tensor, dc: Tensor) -> tuple[Tensor, Tensor, _Row]:
        """(dh, dc) after step t, of all sequences -> those before it, and the step's row."""
        s, n, active = self.s, self.steps.counts[t], self.steps.active(t)
        arrived = dh[:n] if grad_output is None else dh[:n] + grad_output
        new_h, old_h = self._unzoned(arrived, 0, t)
        new_c, old_c = self._unzoned(dc[:n], 1, t) if s.cell == "lstm" else (None, None)
        projected = new_h
        if s.has_projection:
            new_h = new_h @ self.w["weight_hr"]
        gates, u, norm_c, from_cell_h, from_cell_c = _BACKWARD[s.cell](self, t, new_h, new_c)
        hh = self._through_norm(t, u) if s.layer_norm else u
        recurrent = hh @ self.w["weight_hh"]
        if self.context.recurrent_mask is not None:
            recurrent = recurrent * self.context.recurrent_mask[self.d, :n]
        old_h = self.steps.reset(t, old_h + recurrent + from_cell_h)
        width = s.recurrent_grad_width * gates.shape[1] // s.num_gates
        row = _Row(gates, hh[:, hh.shape[1] - width :], projected, norm_c)
        old_c = dc[:n] if old_c is None else self.steps.reset(t, old_c + from_cell_c)
        if active is not None:
            row = _Row(*(torch.where(active, value, 0) for value in row))
            old_h, old_c = torch.where(active, old_h, dh[:n]), torch.where(active, old_c, dc[:n])
        return torch.cat([old_h, dh[n:]]), torch.cat([old_c, dc[n:]]), row

    def _unzoned(self, arrived: Tensor, which: int, t: int) -> tuple[Tensor, Tensor]:
        """The gradient's shares of the new and of the old state."""
        keep, probability = self.keep[which], self.context.zoneout[which]
        if keep is not None:
            return arrived.masked_fill(keep[t], 0), arrived.masked_fill(~keep[t], 0)
        return arrived * (1 - probability), arrived * probability

    def _through_norm(self, t: int, u: Tensor) -> Tensor:
        normalised = self.gates[t][:, -u.shape[1] :]
        return grad_normalise(u * self.w["weight_norm_hh"], normalised, self.rstd[t])


def grad_normalise(grad: Tensor, normalised: Tensor, rstd: Tensor) -> Tensor:
    """The vector-Jacobian product of `normalise`."""
    along = (grad * normalised).mean(-1, keepdim=True)
    return (grad - grad.mean(-1, keepdim=True) - normalised * along) * rstd


def _lstm(self: _Direction, t: int, dh: Tensor, dc: Tensor) -> tuple[Tensor, ...]:
    w, c_old, H = self.w, self.c_old[t], dh.shape[1]
    i, f, g, o = self.gates[t][:, : 4 * H].chunk(4, -1)
    new_c = f * c_old + i * g
    shown, rstd = new_c, None
    if self.s.layer_norm:
        normalised, rstd = normalise(new_c)
        shown = normalised * w["weight_norm_c"] + w["bias_norm_c"]
    shown = shown.tanh()
    norm_c = dh * o * (1 - shown.square())
    dc = dc + (norm_c if rstd is None else grad_normalise(norm_c * w["weight_norm_c"], normalised, rstd))
    do = dh * shown * o * (1 - o)
    if self.s.peephole:
        p_i, p_f, p_o = w["weight_peephole"].chunk(3)
        dc = dc + do * p_o
    di, df, dg = dc * g * i * (1 - i), dc * c_old * f * (1 - f), dc * i * (1 - g.square())
    old_c = dc * f
    if self.s.peephole:
        old_c = old_c + di * p_i + df * p_f
    gates = torch.cat([di, df, dg, do], -1)
    return gates, gates, norm_c, torch.zeros((), dtype=dh.dtype, device=dh.device), old_c


def _gru(self: _Direction, t: int, dh: Tensor, dc: None) -> tuple[Tensor, ...]:
    H = dh.shape[1]
    r, z, n, u_n = self.gates[t][:, : 4 * H].chunk(4, -1)
    dn = dh * (1 - z) * (1 - n.square())
    dz = dh * (self.h_old[t] - n) * z * (1 - z)
    dr = dn * u_n * r * (1 - r)
    return torch.cat([dr, dz, dn], -1), torch.cat([dr, dz, dn * r], -1), dh, dh * z, None


def _rnn_tanh(self: _Direction, t: int, dh: Tensor, dc: None) -> tuple[Tensor, ...]:
    d = dh * (1 - self.gates[t][:, : dh.shape[1]].square())
    return d, d, dh, torch.zeros_like(dh[:, :1]), None


def _rnn_relu(self: _Direction, t: int, dh: Tensor, dc: None) -> tuple[Tensor, ...]:
    d = dh * (self.gates[t][:, : dh.shape[1]] > 0)
    return d, d, dh, torch.zeros_like(dh[:, :1]), None


_BACKWARD = {"lstm": _lstm, "gru": _gru, "rnn_tanh": _rnn_tanh, "rnn_relu": _rnn_relu}
