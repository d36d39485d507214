"""Linear with an activation and dropout as one module: nn.Linear's signature, parameters and state_dict."""

from __future__ import annotations

import copy
from typing import ClassVar

import torch
from torch import Tensor, fx, nn

from ..ops import linear
from ..ops.linear.arguments import check_dropout
from .dropout import DROPOUTS
from .leaf import Leaf

fx.wrap("linear")  # one node of a symbolic trace whose root is the layer


class Linear(Leaf, nn.Linear):
    """dropout(activation(x weight^T + bias)) in one kernel; nn.Linear's arguments, parameters and state_dict.

    `dropout_p` (keyword only, default 0) acts while training. x is [..., in_features], the result
    [..., out_features]. Errors are those of `fastdl.ops.linear`. Source: torch.nn.Linear.

    >>> import fastdl, torch
    >>> fastdl.nn.Linear(4, 2, dropout_p=0.1)(torch.ones(3, 4)).shape
    torch.Size([3, 2])
    """

    activation: ClassVar[str | None] = None
    activation_layer: ClassVar[type[nn.Module] | None] = None
    # of the class: a plain nn.Linear that becomes one of these by `__class__` has no attribute of its own
    dropout_p = 0.0

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        dropout_p: float = 0.0,
    ) -> None:
        check_dropout(dropout_p)
        super().__init__(in_features, out_features, bias, device, dtype)
        if dropout_p:
            self.dropout_p = dropout_p

    def forward(self, input: Tensor) -> Tensor:
        if not isinstance(input, Tensor) and (node := self._node(input)) is not None:
            return node
        dropout_p = self.dropout_p if self.training else 0.0
        return linear(input, self.weight, self.bias, activation=self._activation(), dropout_p=dropout_p)

    def _activation(self) -> str | None:
        return self.activation

    @classmethod
    def from_layers(
        cls, layer: nn.Linear, activation: nn.Module | None = None, dropout: nn.Dropout | None = None
    ) -> Linear:
        """`layer`, its activation and a dropout as one module that shares layer's Parameters; they are left alone.

        Every attribute of `layer` is taken over (its `training` flag and state_dict hooks too). Raises TypeError if
        `layer` computes something else than nn.Linear or `activation` is not the one of this class, ValueError if
        the layer is not initialised yet or carries hooks, which would see another output.

        >>> import fastdl, torch
        >>> layer = torch.nn.Linear(3, 8)
        >>> fastdl.nn.LinearReLU.from_layers(layer, torch.nn.ReLU(), torch.nn.Dropout(0.5)).weight is layer.weight
        True
        """
        _check_layer(layer)
        attributes = cls._attributes(activation, dropout)
        fused = cls.__new__(cls)
        # Containers (parameters, hooks) are copied, so that later additions to one module stay out of the other.
        containers = (dict, set)
        fused.__dict__.update(
            {name: copy.copy(v) if isinstance(v, containers) else v for name, v in layer.__dict__.items()}
        )
        fused.__dict__.update(attributes)
        return fused

    @classmethod
    def _attributes(cls, activation: nn.Module | None, dropout: nn.Dropout | None) -> dict[str, object]:
        """What a module of this class holds besides nn.Linear's attributes."""
        expected = cls.activation_layer
        if activation is not None and (expected is None or type(activation) is not expected):
            wanted = "None" if expected is None else f"an nn.{expected.__name__}"
            raise TypeError(f"activation must be {wanted}, got {type(activation).__name__}")
        if dropout is not None and type(dropout) not in DROPOUTS:
            raise TypeError(f"dropout must be an nn.Dropout, got {type(dropout).__name__}")
        return {"dropout_p": dropout.p} if dropout is not None and dropout.p else {}

    def extra_repr(self) -> str:
        dropout = [f"dropout_p={self.dropout_p}"] if self.dropout_p else []
        return ", ".join([super().extra_repr(), *dropout])


class LinearReLU(Linear):
    """relu(x weight^T + bias), then dropout, in one kernel; arguments, shapes and errors as `fastdl.nn.Linear`.

    Source: torch.nn.Linear, torch.nn.ReLU and torch.nn.Dropout in sequence.

    >>> import fastdl, torch
    >>> fastdl.nn.LinearReLU(4, 2)(torch.ones(3, 4)).shape
    torch.Size([3, 2])
    """

    activation = "relu"
    activation_layer = nn.ReLU


class LinearGELU(Linear):
    """gelu(x weight^T + bias), then dropout, in one kernel; arguments, shapes and errors as `fastdl.nn.Linear`.

    Source: torch.nn.Linear, torch.nn.GELU and torch.nn.Dropout in sequence.

    `approximate` (keyword only) is "none" or "tanh", as of nn.GELU.

    >>> import fastdl, torch
    >>> fastdl.nn.LinearGELU(4, 2, approximate="tanh")(torch.ones(3, 4)).shape
    torch.Size([3, 2])
    """

    activation = "gelu"
    activation_layer = nn.GELU
    approximate = "none"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        dropout_p: float = 0.0,
        approximate: str = "none",
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype, dropout_p=dropout_p)
        if approximate not in ("none", "tanh"):
            raise ValueError(f"approximate must be 'none' or 'tanh', got {approximate!r}")
        if approximate != "none":
            self.approximate = approximate

    def _activation(self) -> str:
        return "gelu_tanh" if self.approximate == "tanh" else "gelu"

    @classmethod
    def _attributes(cls, activation: nn.Module | None, dropout: nn.Dropout | None) -> dict[str, object]:
        attributes = super()._attributes(activation, dropout)
        if activation is not None and activation.approximate != "none":
            attributes["approximate"] = activation.approximate
        return attributes

    def extra_repr(self) -> str:
        approximate = [f"approximate={self.approximate!r}"] if self.approximate != "none" else []
        return ", ".join([super().extra_repr(), *approximate])


class LinearSiLU(Linear):
    """silu(x weight^T + bias), then dropout, in one kernel; arguments, shapes and errors as `fastdl.nn.Linear`.

    Source: torch.nn.Linear, torch.nn.SiLU and torch.nn.Dropout in sequence.

    >>> import fastdl, torch
    >>> fastdl.nn.LinearSiLU(4, 2)(torch.ones(3, 4)).shape
    torch.Size([3, 2])
    """

    activation = "silu"
    activation_layer = nn.SiLU


class LinearTanh(Linear):
    """tanh(x weight^T + bias), then dropout, in one kernel; arguments, shapes and errors as `fastdl.nn.Linear`.

    Source: torch.nn.Linear, torch.nn.Tanh and torch.nn.Dropout in sequence.

    >>> import fastdl, torch
    >>> fastdl.nn.LinearTanh(4, 2)(torch.ones(3, 4)).shape
    torch.Size([3, 2])
    """

    activation = "tanh"
    activation_layer = nn.Tanh


class LinearSigmoid(Linear):
    """sigmoid(x weight^T + bias), then dropout, in one kernel; arguments, shapes and errors as `fastdl.nn.Linear`.

    Source: torch.nn.Linear, torch.nn.Sigmoid and torch.nn.Dropout in sequence.

    >>> import fastdl, torch
    >>> fastdl.nn.LinearSigmoid(4, 2)(torch.ones(3, 4)).shape
    torch.Size([3, 2])
    """

    activation = "sigmoid"
    activation_layer = nn.Sigmoid


def _check_layer(layer: nn.Linear) -> None:
    if not isinstance(layer, nn.Linear):
        raise TypeError(f"layer must be an nn.Linear, got {type(layer).__name__}")
    if isinstance(layer, nn.modules.lazy.LazyModuleMixin):
        raise ValueError("layer is lazy and has no weights yet: run it once first")
    if type(layer).forward is not nn.Linear.forward:
        raise TypeError(f"layer is a {type(layer).__name__}, whose forward is not that of nn.Linear")
    if "weight" not in layer._parameters:
        raise TypeError(
            "layer's weight is not a Parameter of its own (pruned, weight_norm or another parametrization)"
        )
    if layer._forward_pre_hooks or layer._forward_hooks or layer._backward_pre_hooks or layer._backward_hooks:
        raise ValueError("layer has hooks, which would see the output of the whole fused module")
