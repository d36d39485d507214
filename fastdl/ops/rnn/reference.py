"""The recurrence of one layer in plain PyTorch: the definition every backend is held to.

Per step and direction, with gx = W_ih x + b_ih, u = W_hh (m * h_{t-1}), m the recurrent mask (1 without):
lstm  i, f, g, o = sigmoid, sigmoid, tanh, sigmoid of gx + u + b_hh;  c' = f c_{t-1} + i g;  h' = o tanh(c')
      peephole: p_i c_{t-1} and p_f c_{t-1} are added for i and f, p_o c' for o; layer norm: tanh(LN(c'))
gru   r, z = sigmoid of gx + u + b_hh;  n = tanh(gx + r (u + b_hh));  h' = (1 - z) n + z h_{t-1}
rnn   h' = tanh or relu of gx + u + b_hh
layer norm: u is normalised over all gates of the direction and multiplied by weight_norm_hh; gx likewise,
with weight_norm_ih, before it comes here. Projection: h' is W_hr h'. Zoneout keeps h_{t-1} (c_{t-1}) where the
mask says so, else takes h' (c'); without a mask it takes the expectation. Arithmetic after the product is
float32 for 16-bit types.

Sources: torch.nn.LSTM, GRU, RNN; Gers and Schmidhuber 2000 (peephole); Ba et al. 2016 (layer norm); Gal and
Ghahramani 2016 (recurrent mask); Krueger et al. 2017 (zoneout).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..accumulation import accumulate_dtype
from .steps import Context, Steps
from .structure import Structure

EPSILON = 1e-5  # of the layer norms, torch.nn.LayerNorm's default


class Sequence(NamedTuple):
    """The six outputs of rnn_sequence."""

    output: Tensor
    h_n: Tensor
    c_n: Tensor
    gates: Tensor
    cells: Tensor
    rstd: Tensor


def reference_sequence(
    x: Tensor, h_0: Tensor | None, c_0: Tensor | None, weights: list[Tensor], context: Context, s: Structure
) -> Sequence:
    """rnn_sequence with everything saved; differentiable."""
    by_direction = s.by_direction(weights)
    if not s.projected:
        x = torch.cat([F.linear(x, w["weight_ih"], w.get("bias_ih")) for w in by_direction], -1)
    steps, acc = Steps(s, x, context), accumulate_dtype(x.dtype)
    R, H = by_direction[0]["weight_hh"].shape[1], by_direction[0]["weight_hh"].shape[0] // s.num_gates
    if h_0 is None:
        h_0 = x.new_zeros(s.directions, steps.batch, R)
    if c_0 is None:
        c_0 = x.new_zeros(s.directions, steps.batch, H, dtype=acc)
    rows, h_n, c_n = [], [], []
    for d, w in enumerate(by_direction):
        found, h, c = _direction(steps, s, d, x, h_0[d], c_0[d], w)
        rows.append([found[t] for t in range(len(found))])
        h_n.append(h)
        c_n.append(c)

    def joined(i: int, width: int, dtype: torch.dtype) -> Tensor:
        return steps.join([[row[i] for row in direction] for direction in rows], width, dtype)

    return Sequence(
        joined(0, R, x.dtype),
        torch.stack(h_n),
        torch.stack(c_n) if s.cell == "lstm" else x.new_empty(0, dtype=acc),
        joined(1, s.saved_width * H, x.dtype),
        joined(2, H, acc) if s.cell == "lstm" else x.new_empty(0, dtype=acc),
        joined(3, 1, acc) if s.layer_norm else x.new_empty(0, dtype=acc),
    )


def reference_layer(
    x: Tensor, h_0: Tensor | None, c_0: Tensor | None, params: list[Tensor], context: Context, s: Structure
) -> tuple[Tensor, Tensor, Tensor]:
    """(output, h_n, c_n) of a layer with everything outside the recurrence; differentiable.

    `params`: `Structure.names()` of each direction.
    """
    names = s.names()
    gx, weights = [], []
    for d in range(s.directions):
        w = dict(zip(names, params[d * len(names) : (d + 1) * len(names)], strict=True))
        if s.layer_norm:
            product = F.linear(x, w["weight_ih"])
            part = normalise(product.to(accumulate_dtype(x.dtype)))[0] * w["weight_norm_ih"]
            gx.append((part + w["bias_ih"] if s.has_bias else part).to(x.dtype))
        else:
            gx.append(F.linear(x, w["weight_ih"], w.get("bias_ih")))
        weights += [w[name] for name in s._replace(projected=True).sequence_names()]
    projected = torch.cat(gx, -1)
    return reference_sequence(projected, h_0, c_0, weights, context, s._replace(projected=True))[:3]


def _direction(
    steps: Steps, s: Structure, d: int, x: Tensor, h: Tensor, c: Tensor, w: dict[str, Tensor]
) -> tuple[dict[int, tuple[Tensor, ...]], Tensor, Tensor]:
    """(output, gates, cells and rstd by step, h_n, c_n)"""
    context, acc = steps.context, accumulate_dtype(x.dtype)
    rows, R = w["weight_hh"].shape
    gx = steps.split(x, d, rows)
    keep_h = None if context.zoneout_h is None else steps.split(context.zoneout_h, d, R)
    keep_c = None if context.zoneout_c is None else steps.split(context.zoneout_c, d, rows // s.num_gates)
    found = {}
    for t in steps.order(d):
        n = steps.counts[t]
        h_old, c_old = steps.reset(t, h[:n]), steps.reset(t, c[:n])
        masked = h_old if context.recurrent_mask is None else h_old * context.recurrent_mask[d, :n]
        u, normalised, rstd = _recurrent(F.linear(masked, w["weight_hh"]).to(acc), w, s)
        new_h, new_c, gates = CELLS[s.cell](gx[t].to(acc), u, h_old, c_old, w)
        if s.has_projection:
            new_h = F.linear(new_h.to(x.dtype), w["weight_hr"])
        new_h = zoned(new_h.to(acc), h_old.to(acc), keep_h and keep_h[t], context.zoneout[0]).to(x.dtype)
        new_c = zoned(new_c, c_old, keep_c and keep_c[t], context.zoneout[1])
        gates = torch.cat([gates, normalised], -1) if s.layer_norm else gates
        found[t] = (new_h, gates.to(x.dtype), new_c, rstd)
        active = steps.active(t)
        if active is not None:
            found[t] = tuple(torch.where(active, value, 0) for value in found[t])
            new_h, new_c = torch.where(active, new_h, h[:n]), torch.where(active, new_c, c[:n])
        h, c = torch.cat([new_h, h[n:]]), torch.cat([new_c, c[n:]])
    return found, h, c


def zoned(new: Tensor, old: Tensor, keep: Tensor | None, probability: float) -> Tensor:
    """Zoneout: `old` where `keep`, else `new`; without a mask the expectation."""
    if keep is not None:
        return torch.where(keep, old, new)
    return new if probability == 0 else probability * old + (1 - probability) * new


def normalise(u: Tensor) -> tuple[Tensor, Tensor]:
    """(u - mean) / sqrt(variance + EPSILON) over the last dimension, and the factor."""
    centred = u - u.mean(-1, keepdim=True)
    rstd = (centred.square().mean(-1, keepdim=True) + EPSILON).rsqrt()
    return centred * rstd, rstd


def _recurrent(u: Tensor, w: dict[str, Tensor], s: Structure) -> tuple[Tensor, Tensor, Tensor]:
    """(u as it enters the gates, u normalised, the factor)"""
    normalised, rstd = u, u[:, :1]
    if s.layer_norm:
        normalised, rstd = normalise(u)
        u = normalised * w["weight_norm_hh"]
    return (u + w["bias_hh"] if s.has_bias else u), normalised, rstd


def _lstm(gx: Tensor, u: Tensor, h: Tensor, c: Tensor, w: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    i, f, g, o = (gx + u).chunk(4, -1)
    peephole = "weight_peephole" in w
    if peephole:
        p_i, p_f, p_o = w["weight_peephole"].chunk(3)
        i, f = i + p_i * c, f + p_f * c
    i, f, g = i.sigmoid(), f.sigmoid(), g.tanh()
    new_c = f * c + i * g
    o = (o + p_o * new_c if peephole else o).sigmoid()
    shown = normalise(new_c)[0] * w["weight_norm_c"] + w["bias_norm_c"] if "weight_norm_c" in w else new_c
    return o * shown.tanh(), new_c, torch.cat([i, f, g, o], -1)


def _gru(gx: Tensor, u: Tensor, h: Tensor, c: Tensor, w: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    (x_r, x_z, x_n), (u_r, u_z, u_n) = gx.chunk(3, -1), u.chunk(3, -1)
    r, z = (x_r + u_r).sigmoid(), (x_z + u_z).sigmoid()
    n = (x_n + r * u_n).tanh()
    return (1 - z) * n + z * h, c, torch.cat([r, z, n, u_n], -1)


def _rnn_tanh(
    gx: Tensor, u: Tensor, h: Tensor, c: Tensor, w: dict[str, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    new = (gx + u).tanh()
    return new, c, new


def _rnn_relu(
    gx: Tensor, u: Tensor, h: Tensor, c: Tensor, w: dict[str, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    new = F.relu(gx + u)
    return new, c, new


CELLS = {"lstm": _lstm, "gru": _gru, "rnn_tanh": _rnn_tanh, "rnn_relu": _rnn_relu}
