"""LSTMCell, GRUCell and RNNCell: torch.nn's signatures, parameters and state_dicts, and the variants."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..ops import gru_cell, lstm_cell, rnn_cell
from ..ops.rnn.op import rnn_cell_name
from ..ops.rnn.options import probability, zoneout_pair
from ..ops.rnn.structure import Structure
from .leaf import Leaf
from .rnn_arguments import batch_of_one, check_cell_sizes, check_input, states_of_one

_OWN = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


class _Variants(Leaf):
    """What the three cells add to torch's; mixed in before torch's class."""

    # What an instance of torch's class does not have.
    layer_norm = False
    zoneout: float | tuple[float, float] = 0.0
    recurrent_dropout = 0.0
    peephole = False

    def _add_variants(
        self,
        cell: str,
        layer_norm: bool,
        zoneout: float | tuple[float, float],
        recurrent_dropout: float,
        peephole: bool = False,
    ) -> None:
        zoneout_pair(zoneout, cell)
        probability("recurrent_dropout", recurrent_dropout)
        self.layer_norm, self.zoneout, self.peephole = layer_norm, zoneout, peephole
        self.recurrent_dropout = recurrent_dropout
        like = self.weight_hh
        shapes = Structure(cell, layer_norm=layer_norm, peephole=peephole).shapes(
            1, self.hidden_size, self.hidden_size
        )
        for name, shape in shapes.items():
            if name not in _OWN:
                self.register_parameter(name, nn.Parameter(like.new_empty(shape)))
        if layer_norm or peephole:
            self._reset_variants()

    def reset_parameters(self) -> None:
        """Uniform in +- 1 / sqrt(hidden_size), in torch's order; layer norms start as the identity."""
        super().reset_parameters()
        self._reset_variants()

    def _reset_variants(self) -> None:
        bound = self.hidden_size**-0.5 if self.hidden_size else 0.0
        for name, weight in self.named_parameters():
            if name == "weight_peephole":
                nn.init.uniform_(weight, -bound, bound)
            elif name not in _OWN:
                nn.init.constant_(weight, 1.0 if name.startswith("weight") else 0.0)

    def _own(self) -> tuple[Tensor | None, ...]:
        own = self._parameters
        try:
            return own["weight_ih"], own["weight_hh"], own["bias_ih"], own["bias_hh"]
        except KeyError:  # parametrized, pruned, weight_norm: the values are attributes
            return tuple([getattr(self, name) for name in _OWN])

    def _variants(self, reset: Tensor | None) -> dict[str, object]:
        """What a step is given besides torch's arguments; empty where nothing is asked for."""
        asked = (
            self.layer_norm or self.zoneout or self.recurrent_dropout or self.peephole or reset is not None
        )
        if not asked:
            return {}
        return self._added() | {
            "zoneout": self.zoneout,
            "recurrent_dropout": self.recurrent_dropout,
            "reset": reset,
            "train": self.training,
        }

    def _added(self) -> dict[str, Tensor]:
        names = ("weight_norm_ih", "weight_norm_hh") if self.layer_norm else ()
        if isinstance(self, nn.LSTMCell):
            names += ("weight_norm_c", "bias_norm_c") if self.layer_norm else ()
            names += ("weight_peephole",) if self.peephole else ()
        return {name: getattr(self, name) for name in names}

    def extra_repr(self) -> str:
        defaults = dict(layer_norm=False, zoneout=0.0, recurrent_dropout=0.0, peephole=False)
        added = [f"{name}={getattr(self, name)}" for name, d in defaults.items() if getattr(self, name) != d]
        return ", ".join([super().extra_repr(), *added])


class LSTMCell(_Variants, nn.LSTMCell):
    """torch.nn.LSTMCell: its arguments, parameters and results; layer norm, zoneout,
    recurrent dropout (drawn anew in every call) and peephole as `fastdl.nn.LSTM`.

    `forward(input, hx=None, *, reset=None)` takes [B, I] or [I], and `reset`, [B] or [] bool: where True the step
    starts from zero states. It returns (h', c'). Errors: as `fastdl.ops.lstm_cell`.
    Source: torch.nn.LSTMCell.

    >>> import fastdl, torch
    >>> h, c = fastdl.nn.LSTMCell(3, 4)(torch.ones(2, 3))
    >>> h.shape, c.shape
    (torch.Size([2, 4]), torch.Size([2, 4]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        layer_norm: bool = False,
        zoneout: float | tuple[float, float] = 0.0,
        recurrent_dropout: float = 0.0,
        peephole: bool = False,
    ) -> None:
        check_cell_sizes(input_size, hidden_size)
        super().__init__(input_size, hidden_size, bias, device, dtype)
        self._add_variants("lstm", layer_norm, zoneout, recurrent_dropout, peephole)

    def forward(
        self,
        input: Tensor,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        reset: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        if not isinstance(input, Tensor) and (node := self._node(input, hx, reset=reset)) is not None:
            return node
        check_input(input, (1, 2), self.input_size, "Tensor")
        unbatched = input.dim() == 1
        if unbatched:
            input, hx = input.unsqueeze(0), states_of_one(hx, "lstm", 0, 1)
            reset = batch_of_one("reset", reset, 0, 0)
        h, c = lstm_cell(input, hx, *self._own(), **self._variants(reset))
        return (h[0], c[0]) if unbatched else (h, c)


class _OneState(_Variants):
    """forward of the cells whose state is h alone."""

    def forward(self, input: Tensor, hx: Tensor | None = None, *, reset: Tensor | None = None) -> Tensor:
        if not isinstance(input, Tensor) and (node := self._node(input, hx, reset=reset)) is not None:
            return node
        check_input(input, (1, 2), self.input_size, "Tensor")
        unbatched = input.dim() == 1
        if unbatched:
            input, hx = input.unsqueeze(0), states_of_one(hx, "gru", 0, 1)
            reset = batch_of_one("reset", reset, 0, 0)
        h = self._step(input, hx, self._variants(reset))
        return h[0] if unbatched else h


class GRUCell(_OneState, nn.GRUCell):
    """torch.nn.GRUCell: its arguments, parameters and results; layer norm, zoneout and
    recurrent dropout (drawn anew in every call) as `fastdl.nn.GRU`.

    `forward(input, hx=None, *, reset=None)` takes [B, I] or [I], and `reset`, [B] or [] bool: where True the step
    starts from zero states. It returns h'. Errors: as `fastdl.ops.gru_cell`.
    Source: torch.nn.GRUCell.

    >>> import fastdl, torch
    >>> fastdl.nn.GRUCell(3, 4, zoneout=0.1)(torch.ones(2, 3)).shape
    torch.Size([2, 4])
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        layer_norm: bool = False,
        zoneout: float | tuple[float, float] = 0.0,
        recurrent_dropout: float = 0.0,
    ) -> None:
        check_cell_sizes(input_size, hidden_size)
        super().__init__(input_size, hidden_size, bias, device, dtype)
        self._add_variants("gru", layer_norm, zoneout, recurrent_dropout)

    def _step(self, input: Tensor, hx: Tensor | None, variants: dict[str, object]) -> Tensor:
        return gru_cell(input, hx, *self._own(), **variants)


class RNNCell(_OneState, nn.RNNCell):
    """torch.nn.RNNCell: its arguments, parameters and results; layer norm, zoneout and
    recurrent dropout (drawn anew in every call) as `fastdl.nn.RNN`.

    `forward(input, hx=None, *, reset=None)` takes [B, I] or [I], and `reset`, [B] or [] bool: where True the step
    starts from zero states. It returns h'. Errors: as `fastdl.ops.rnn_cell`.
    Source: torch.nn.RNNCell.

    >>> import fastdl, torch
    >>> fastdl.nn.RNNCell(3, 4, nonlinearity="relu")(torch.ones(2, 3)).shape
    torch.Size([2, 4])
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        layer_norm: bool = False,
        zoneout: float | tuple[float, float] = 0.0,
        recurrent_dropout: float = 0.0,
    ) -> None:
        rnn_cell_name(nonlinearity)
        check_cell_sizes(input_size, hidden_size)
        super().__init__(input_size, hidden_size, bias, nonlinearity, device, dtype)
        self._add_variants("rnn_tanh", layer_norm, zoneout, recurrent_dropout)

    def _step(self, input: Tensor, hx: Tensor | None, variants: dict[str, object]) -> Tensor:
        return rnn_cell(input, hx, *self._own(), nonlinearity=self.nonlinearity, **variants)
