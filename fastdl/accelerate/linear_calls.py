"""The call that takes the place of a Linear and what follows it inside a traced forward."""

from __future__ import annotations

from torch import Tensor, nn

from ..ops import linear


def linear_activation(layer: nn.Linear, x: Tensor, activation: str | None, dropout_p: float = 0.0) -> Tensor:
    """activation(layer(x)), elements dropped with probability `dropout_p`."""
    return linear(x, layer.weight, layer.bias, activation=activation, dropout_p=dropout_p)


def linear_activation_dropout(
    layer: nn.Linear, dropout: nn.Dropout, x: Tensor, activation: str | None
) -> Tensor:
    """dropout(activation(layer(x))), with the probability and mode that `dropout` has now."""
    return linear_activation(layer, x, activation, dropout.p if dropout.training else 0.0)
