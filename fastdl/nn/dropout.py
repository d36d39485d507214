"""nn.Dropout whose mask is drawn again in backward."""

from __future__ import annotations

from torch import Tensor, nn

from ..ops import dropout
from .leaf import Leaf


class Dropout(Leaf, nn.Dropout):
    """x / (1 - p) with each element 0 with probability p while training; nn.Dropout's arguments.

    On CPUs one pass by all threads (torch's mask is drawn by one), and a seed saved instead of the mask. With
    `inplace=True` it is torch's. Shapes, dtypes and errors are those of `fastdl.ops.dropout`.

    Source: torch.nn.Dropout.

    >>> import fastdl, torch
    >>> fastdl.nn.Dropout(0.5).eval()(torch.ones(2, 2))
    tensor([[1., 1.],
            [1., 1.]])
    """

    def forward(self, input: Tensor) -> Tensor:
        if not isinstance(input, Tensor) and (node := self._node(input)) is not None:
            return node
        return super().forward(input) if self.inplace else dropout(input, self.p, training=self.training)


# What one layer looks for in another: torch's, and what accelerate() makes of it.
DROPOUTS = (nn.Dropout, Dropout)
