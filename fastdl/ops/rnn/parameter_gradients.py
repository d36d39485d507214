"""Gradients of the parameters inside the recurrence: products and sums over all rows, no loop over steps."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import products
from .previous_states import previous_states
from .reference import Sequence, accumulate_dtype, normalise
from .reference_backward import SequenceGradients
from .rows import flat, outer_sum
from .steps import Context
from .structure import Structure


def recurrent_gradients(
    grads: SequenceGradients,
    h_0: Tensor | None,
    c_0: Tensor | None,
    by_direction: list[dict[str, Tensor]],
    saved: Sequence,
    context: Context,
    s: Structure,
    wanted: tuple[str, ...],
    projections: list[dict[str, Tensor]],
) -> list[dict[str, Tensor]]:
    """Those of each direction by name; of `saved`, h_n and c_n are not read. `wanted`: names that need one.

    `projections`: what `project_backward` found for each direction.
    """
    return [
        _Direction(grads, h_0, c_0, by_direction[d], saved, context, s, d, projections[d]).gradients(wanted)
        for d in range(s.directions)
    ]


class _Direction:
    """One direction's columns of everything; what several gradients need is made once."""

    def __init__(
        self,
        grads: SequenceGradients,
        h_0: Tensor | None,
        c_0: Tensor | None,
        w: dict[str, Tensor],
        saved: Sequence,
        context: Context,
        s: Structure,
        d: int,
        projection: dict[str, Tensor],
    ) -> None:
        self.s, self.d, self.w, self.context, self.projection = s, d, w, context, projection
        self.h_0, self.c_0 = (None if t is None else t[d] for t in (h_0, c_0))
        self.grad_gates, self.grad_gates_hh, self.grad_projected, self.grad_norm_c = (
            self._own(t)
            for t in (grads.grad_gates, grads.grad_gates_hh, grads.grad_projected, grads.grad_norm_c)
        )
        self.output, self.gates, self.cells = (self._own(t) for t in (saved.output, saved.gates, saved.cells))
        self.H = w["weight_hh"].shape[0] // s.num_gates
        self.acc = accumulate_dtype(saved.output.dtype)

    def _own(self, rows: Tensor) -> Tensor:
        width = rows.shape[-1] // self.s.directions
        return rows[..., self.d * width : (self.d + 1) * width] if rows.dim() > 1 else rows

    def gradients(self, wanted: tuple[str, ...]) -> dict[str, Tensor]:
        makers = {
            "weight_hh": self._weight_hh,
            "bias_hh": self._bias_hh,
            "weight_norm_hh": self._weight_norm_hh,
            "weight_hr": self._weight_hr,
            "weight_peephole": self._weight_peephole,
            "weight_norm_c": self._weight_norm_c,
            "bias_norm_c": lambda: flat(self.grad_norm_c).sum(0),
        }
        dtype = self.output.dtype
        return {name: make().to(dtype) for name, make in makers.items() if name in wanted and name in self.w}

    def _weight_hh(self) -> Tensor:
        """Sum over rows of (gradient of the product) x (what was multiplied)."""
        s, H = self.s, self.H
        if s.layer_norm:
            pieces = [self.grad_gates_hh]
        elif s.cell == "gru":
            pieces = [self.grad_gates[..., : 2 * H], self.grad_gates_hh]
        else:
            pieces = [self.grad_gates]
        products = [self._by_shift(p) if self._shift_is_enough() else self._by_rows(p) for p in pieces]
        return products[0] if len(products) == 1 else torch.cat(products)

    def _shift_is_enough(self) -> bool:
        """Whether h_{t-1} is output one step earlier, in memory that products read as it lies."""
        c = self.context
        dense = c.batch_sizes is None and not self.s.batch_first and self.output.shape[0] > 0
        # with lengths the reverse direction starts from h_0 in the middle of the rows
        whole = c.lengths is None or self.d == 0 or self.h_0 is None
        return dense and whole and c.reset is None and c.recurrent_mask is None

    def _by_shift(self, piece: Tensor) -> Tensor:
        T = piece.shape[0]
        if self.d == 0:
            later, earlier, first = piece[1:], self.output[: T - 1], piece[0]
        else:
            later, earlier, first = piece[: T - 1], self.output[1:], piece[T - 1]
        if self.h_0 is None:
            return outer_sum(later, earlier)
        if T == 1:
            return outer_sum(first, self.h_0)
        total = outer_sum(later, earlier)
        if products.slow_in_torch(total):
            return total + outer_sum(first, self.h_0)
        return torch.addmm(total, first.t(), self.h_0)

    def _by_rows(self, piece: Tensor) -> Tensor:
        if not hasattr(self, "_h_old"):
            self._h_old = previous_states(self.output, self.h_0, self.d, self.context, self.s)
            mask = self.context.recurrent_mask
            if mask is not None:
                self._h_old = self._h_old * self._per_row(mask[self.d])
        return outer_sum(piece, self._h_old)

    def _per_row(self, per_sequence: Tensor) -> Tensor:
        """[B, width] -> something that broadcasts over the rows."""
        if self.context.batch_sizes is not None:
            return torch.cat([per_sequence[:n] for n in self.context.batch_sizes.tolist()])
        return per_sequence[:, None] if self.s.batch_first else per_sequence

    def _recurrent_sum(self) -> Tensor:
        """[*rows, G * H], the gradient of the recurrent product where it enters the gates."""
        if self.s.cell != "gru":
            return self.grad_gates
        H = self.H
        n = self.grad_gates[..., 2 * H :] * self.gates[..., :H] if self.s.layer_norm else self.grad_gates_hh
        return torch.cat([self.grad_gates[..., : 2 * H], n], -1)

    def _bias_hh(self) -> Tensor:
        if self.s.layer_norm:
            return flat(self._recurrent_sum()).sum(0)
        # both biases enter the gates alike, but for n of a gru
        alike = self.projection.get("bias_ih")
        alike = flat(self.grad_gates).sum(0) if alike is None else alike
        if self.s.cell == "gru":
            return torch.cat([alike[: 2 * self.H], flat(self.grad_gates_hh).sum(0)])
        return alike.clone()

    def _weight_norm_hh(self) -> Tensor:
        normalised = self.gates[..., -self.s.num_gates * self.H :]
        return _row_sum(self._recurrent_sum(), normalised, self.acc)

    def _weight_hr(self) -> Tensor:
        gates, H = self.gates, self.H
        shown = self._new_c()
        if self.s.layer_norm:
            shown = normalise(shown)[0] * self.w["weight_norm_c"] + self.w["bias_norm_c"]
        return outer_sum(self.grad_projected, (gates[..., 3 * H : 4 * H] * shown.tanh()).to(gates.dtype))

    def _weight_peephole(self) -> Tensor:
        H, c_old = self.H, self._c_old()
        i, f, o = (self.grad_gates[..., k * H : (k + 1) * H] for k in (0, 1, 3))
        sums = (
            _row_sum(i, c_old, self.acc),
            _row_sum(f, c_old, self.acc),
            _row_sum(o, self._new_c(), self.acc),
        )
        return torch.cat(sums)

    def _weight_norm_c(self) -> Tensor:
        return _row_sum(self.grad_norm_c, normalise(self._new_c())[0], self.acc)

    def _c_old(self) -> Tensor:
        if not hasattr(self, "_c_before"):
            self._c_before = previous_states(self.cells, self.c_0, self.d, self.context, self.s)
        return self._c_before

    def _new_c(self) -> Tensor:
        """c before zoneout."""
        if self.context.zoneout_c is None and self.context.zoneout[1] == 0:
            return self.cells
        H = self.H
        i, f, g = (self.gates[..., k * H : (k + 1) * H] for k in range(3))
        return f * self._c_old() + i * g


def _row_sum(left: Tensor, right: Tensor, acc: torch.dtype) -> Tensor:
    """Sum over rows of left * right."""
    return (flat(left).to(acc) * flat(right).to(acc)).sum(0)
