"""What one recurrent layer is made of: its cell, its options, the order and shapes of its tensors."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

CELLS = ("lstm", "gru", "rnn_tanh", "rnn_relu")
GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


class Structure(NamedTuple):
    """One layer in one or two directions; the second direction runs from the last step to the first.

    Sizes: T steps, B sequences, I inputs, H hidden units, R = H, or with a projection the size of h; G gates.
    A tensor with an entry for each step and sequence has the rows of x in front, called `*rows`: [T, B],
    with `batch_first` [B, T], packed [total].
    """

    cell: str
    directions: int = 1
    batch_first: bool = False
    has_bias: bool = True
    has_projection: bool = False
    layer_norm: bool = False
    peephole: bool = False
    # x is W_ih x + b_ih (layer norm: its normalised form) of every direction, [*rows, directions * G * H]
    projected: bool = True

    @property
    def num_gates(self) -> int:
        """G: i f g o, r z n, or the one of a plain cell."""
        return GATES[self.cell]

    @property
    def saved_width(self) -> int:
        """Columns of `gates` in units of H.

        lstm: i f g o; gru: r z n and the recurrent half of n before the reset; rnn: h before zoneout. With
        layer norm then the normalised product with weight_hh.
        """
        own = 4 if self.cell in ("lstm", "gru") else 1
        return own + (self.num_gates if self.layer_norm else 0)

    @property
    def recurrent_grad_width(self) -> int:
        """Columns of `grad_gates_hh` in units of H: what differs from grad_gates; 0: nothing does."""
        if self.layer_norm:
            return self.num_gates
        return 1 if self.cell == "gru" else 0

    def names(self) -> tuple[str, ...]:
        """Parameters of one direction, in their order: torch.nn's, then those of the variants."""
        names = ["weight_ih", "weight_hh"]
        names += ["bias_ih", "bias_hh"] if self.has_bias else []
        names += ["weight_hr"] if self.has_projection else []
        names += ["weight_peephole"] if self.peephole else []
        names += ["weight_norm_ih", "weight_norm_hh"] if self.layer_norm else []
        return (
            *names,
            *(("weight_norm_c", "bias_norm_c") if self.layer_norm and self.cell == "lstm" else ()),
        )

    def shapes(self, input_size: int, hidden_size: int, state_size: int) -> dict[str, tuple[int, ...]]:
        """Shape of every parameter, in the order of `names()`."""
        rows = self.num_gates * hidden_size
        every = {
            "weight_ih": (rows, input_size),
            "weight_hh": (rows, state_size),
            "bias_ih": (rows,),
            "bias_hh": (rows,),
            "weight_hr": (state_size, hidden_size),
            "weight_peephole": (3 * hidden_size,),
            "weight_norm_ih": (rows,),
            "weight_norm_hh": (rows,),
            "weight_norm_c": (hidden_size,),
            "bias_norm_c": (hidden_size,),
        }
        return {name: every[name] for name in self.names()}

    def sequence_names(self) -> tuple[str, ...]:
        """Parameters the raw operators take for one direction: without those a projected x already holds."""
        inside = ("weight_ih", "bias_ih", "weight_norm_ih")
        return tuple(name for name in self.names() if not (self.projected and name in inside))

    def by_direction(self, weights: list[Tensor]) -> list[dict[str, Tensor]]:
        """The raw operators' flat list as name -> tensor for each direction."""
        names = self.sequence_names()
        return [
            dict(zip(names, weights[d * len(names) : (d + 1) * len(names)], strict=True))
            for d in range(self.directions)
        ]

    def packed(self) -> list[int]:
        """How it crosses to the kernels: the index of the cell, then the other fields in their order."""
        return [CELLS.index(self.cell), *map(int, self[1:])]

    @classmethod
    def unpack(cls, packed: list[int]) -> Structure:
        """The inverse of `packed()`."""
        return cls(CELLS[packed[0]], packed[1], *map(bool, packed[2:]))
