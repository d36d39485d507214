"""The arguments of linear, checked once."""

from __future__ import annotations

from torch import Tensor

from .activations import ACTIVATIONS


def check_kinds(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """TypeError unless each is a Tensor (bias: or None)."""
    if isinstance(x, Tensor) and isinstance(weight, Tensor) and (bias is None or isinstance(bias, Tensor)):
        return
    for name, t in (("x", x), ("weight", weight), ("bias", bias)):
        if not (isinstance(t, Tensor) or (t is None and name == "bias")):
            raise TypeError(f"{name} must be a Tensor, got {type(t).__name__}")


def check(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, dropout_p: float) -> None:
    """TypeError or ValueError with expected and got, unless everything fits."""
    for name, t in (("x", x), ("weight", weight), ("bias", bias)):
        if t is None:
            continue
        if not t.is_floating_point():
            raise TypeError(f"{name} must be floating point, got {t.dtype}")
        if t.dtype != x.dtype:
            raise TypeError(f"{name} must have the dtype of x, {x.dtype}, got {t.dtype}")
        if t.device != x.device:
            raise TypeError(f"{name} must be on the device of x, {x.device}, got {t.device}")
    if x.dim() < 1:
        raise ValueError("x must have shape [..., in_features], got []")
    if weight.dim() != 2:
        raise ValueError(f"weight must have shape [out_features, in_features], got {list(weight.shape)}")
    N, K = weight.shape
    if x.shape[-1] != K:
        raise ValueError(
            f"x must have shape [..., in_features] with in_features = {K} (weight is {list(weight.shape)}), "
            f"got {list(x.shape)}"
        )
    if bias is not None and tuple(bias.shape) != (N,):
        raise ValueError(f"bias must have shape [out_features] = [{N}], got {list(bias.shape)}")
    if not (activation is None or isinstance(activation, str)) or activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {tuple(ACTIVATIONS)}, got {activation!r}")
    check_dropout(dropout_p)


def check_dropout(dropout_p: float) -> None:
    """ValueError unless `dropout_p` is a probability."""
    if isinstance(dropout_p, bool) or not isinstance(dropout_p, (int, float)) or not 0 <= dropout_p <= 1:
        raise ValueError(f"dropout_p must be a number from 0 to 1, got {dropout_p!r}")
