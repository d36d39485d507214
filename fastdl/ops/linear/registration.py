"""The raw operators: schemas, the reference behind every device without a kernel, shapes for fake tensors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..raw_operators import define
from . import schema
from .activations import BY_INPUT, NAMES, activate, derivative
from .reference import dropped, kept


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seed: Tensor | None,
    activation: int,
    dropout_p: float,
    save: bool,
) -> tuple[Tensor, Tensor]:
    """(output, saved): saved is the pre-activation where the derivative needs it and `save` asks for it."""
    pre = F.linear(x, weight, bias)
    saved = pre if _saves_input(activation, save) else x.new_empty(0)
    # a tensor of its own each: outputs of an operator must not alias
    return linear_activation(pre, seed, activation, dropout_p), saved


def linear_product(left: Tensor, right: Tensor, bias: Tensor | None) -> Tensor:
    """left right + bias, of matrices."""
    return left @ right if bias is None else torch.addmm(bias, left, right)


def linear_activation(pre: Tensor, seed: Tensor | None, activation: int, dropout_p: float) -> Tensor:
    output = dropped(activate(pre, NAMES[activation]), seed, dropout_p)
    return output.clone() if output is pre else output


def linear_activation_inplace(values: Tensor, seed: Tensor | None, activation: int, dropout_p: float) -> None:
    values.copy_(linear_activation(values, seed, activation, dropout_p))


def linear_activation_backward(
    grad_output: Tensor,
    saved: Tensor,
    seed: Tensor | None,
    activation: int,
    dropout_p: float,
    need_bias: bool,
) -> tuple[Tensor, Tensor]:
    """(grad_pre, grad_bias); saved is the output, the pre-activation, or empty, as the activation needs."""
    grad_pre = grad_output
    if dropout_p:
        scale = 1 / (1 - dropout_p) if dropout_p < 1 else 0.0
        keep = kept(grad_output.shape, seed, dropout_p)
        grad_pre = torch.where(keep, grad_pre * scale, 0)
        if NAMES[activation] in ("tanh", "sigmoid"):
            saved = saved * (1 - dropout_p)
    name = NAMES[activation]
    if name == "relu":
        grad_pre = grad_pre.masked_fill(saved <= 0, 0)
    elif name is not None:
        grad_pre = grad_pre * derivative(saved, name)
    if dropout_p:
        grad_pre = torch.where(keep, grad_pre, 0)
    elif activation == 0:
        grad_pre = grad_pre.clone()
    summed = tuple(range(grad_pre.dim() - 1))
    grad_bias = grad_pre.new_empty(0)
    if need_bias:
        grad_bias = grad_pre.sum(summed) if summed else grad_pre.clone()
    return grad_pre.contiguous(), grad_bias


def _saves_input(activation: int, save: bool) -> bool:
    return save and NAMES[activation] in BY_INPUT


def fake_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seed: Tensor | None,
    activation: int,
    dropout_p: float,
    save: bool,
) -> tuple[Tensor, Tensor]:
    size = (*x.shape[:-1], weight.shape[0])
    return x.new_empty(size), x.new_empty(size if _saves_input(activation, save) else 0)


def fake_linear_product(left: Tensor, right: Tensor, bias: Tensor | None) -> Tensor:
    return left.new_empty(left.shape[0], right.shape[1])


def fake_linear_activation(pre: Tensor, seed: Tensor | None, activation: int, dropout_p: float) -> Tensor:
    return pre.new_empty(pre.shape)


def fake_linear_activation_inplace(
    values: Tensor, seed: Tensor | None, activation: int, dropout_p: float
) -> None:
    return None


def fake_linear_activation_backward(
    grad_output: Tensor,
    saved: Tensor,
    seed: Tensor | None,
    activation: int,
    dropout_p: float,
    need_bias: bool,
) -> tuple[Tensor, Tensor]:
    N = grad_output.shape[-1]
    return grad_output.new_empty(grad_output.shape), grad_output.new_empty(N if need_bias else 0)


library = define(schema.SCHEMAS, globals())
