"""The call that takes the place of a Linear and what follows it inside a traced forward."""

from __future__ import annotations

from torch import Tensor, nn

from ..ops import linear

# Below, a product with a transposed weight is torch's, which the layer itself calls in 40 us less.
_FEW_ROWS = 16


def linear_activation(
    layer: nn.Module, x: Tensor, activation: str | None, dropout_p: float = 0.0, transposed: bool = False
) -> Tensor:
    """activation(layer(x)), elements dropped with probability `dropout_p`.

    `transposed`: the weight of `layer` is [in_features, out_features].
    """
    weight = layer.weight
    if transposed:
        if activation is None and not dropout_p and x.numel() < _FEW_ROWS * weight.shape[0]:
            return layer(x)
        weight = weight.t()
    return linear(x, weight, layer.bias, activation=activation, dropout_p=dropout_p)


def linear_activation_dropout(
    layer: nn.Module, dropout: nn.Dropout, x: Tensor, activation: str | None, transposed: bool = False
) -> Tensor:
    """dropout(activation(layer(x))), with the probability and mode that `dropout` has now."""
    return linear_activation(layer, x, activation, dropout.p if dropout.training else 0.0, transposed)
