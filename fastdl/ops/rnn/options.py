"""What a call of the recurrent ops asks for besides its tensors, checked and normalised."""

from __future__ import annotations

import numbers
from typing import NamedTuple

from .structure import Structure


class Options(NamedTuple):
    """Everything of a stack of layers that is not a tensor."""

    cell: str
    has_biases: bool = True
    num_layers: int = 1
    dropout: float = 0.0
    train: bool = False
    bidirectional: bool = False
    batch_first: bool = False
    layer_norm: bool = False
    zoneout: float | tuple[float, float] = (0.0, 0.0)
    recurrent_dropout: float = 0.0
    peephole: bool = False
    checkpoint: bool = False

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    def structure(self, has_projection: bool) -> Structure:
        """That of every layer, its input projected outside."""
        return Structure(
            self.cell, self.directions, self.batch_first, self.has_biases, has_projection, self.layer_norm,
            self.peephole,
        )  # fmt: skip

    def checked(self) -> Options:
        """The same with `zoneout` as a pair and a bool as one; raises where a value does not fit."""
        if self.num_layers < 1:
            raise ValueError(f"num_layers must be at least 1, got {self.num_layers}")
        probability("dropout", self.dropout)
        probability("recurrent_dropout", self.recurrent_dropout)
        if self.peephole and self.cell != "lstm":
            raise ValueError(f"peephole is for lstm, got cell {self.cell!r}")
        return self._replace(
            bidirectional=flag("bidirectional", self.bidirectional),
            zoneout=zoneout_pair(self.zoneout, self.cell),
        )


def flag(name: str, value: bool) -> bool:
    """The bool that `value` is equal to, of NumPy or 0 and 1 too; TypeError if there is none."""
    if value not in (False, True):
        raise TypeError(f"{name} must be a bool, got {value!r}")
    return bool(value)


def probability(name: str, value: float) -> None:
    """ValueError unless `value` is a number from 0 to 1."""
    if not isinstance(value, numbers.Number) or isinstance(value, bool) or not 0 <= value <= 1:
        raise ValueError(f"{name} must be a number from 0 to 1, got {value!r}")


def zoneout_pair(zoneout: float | tuple[float, float], cell: str) -> tuple[float, float]:
    """(h, c); one number is meant for both."""
    lstm = cell == "lstm"
    both = zoneout if isinstance(zoneout, (tuple, list)) else (zoneout, zoneout if lstm else 0.0)
    if len(both) != 2:
        raise ValueError(f"zoneout must be a number or a pair (h, c), got {zoneout!r}")
    for value in both:
        probability("zoneout", value)
    if both[1] and not lstm:
        raise ValueError(f"zoneout of c is for lstm, got {zoneout!r}")
    return float(both[0]), float(both[1])
