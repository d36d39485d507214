"""Everything before the recurrence, for all steps at once: W_ih x + b_ih of every direction, layer norm of it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import products
from .reference import EPSILON
from .rows import flat, outer_sum
from .structure import Structure


class Projected(NamedTuple):
    """`gx` is [*rows, D * G * H]. Layer norm: for each direction the product, its mean and its factor."""

    gx: Tensor
    norms: tuple[Tensor, ...] = ()


def project(x: Tensor, by_direction: list[dict[str, Tensor]], s: Structure) -> Projected:
    """Not differentiable; see `project_backward`."""
    if not s.layer_norm:
        weight, bias = (joined(by_direction, name) for name in ("weight_ih", "bias_ih"))
        return Projected(products.linear(x, weight, bias))
    parts, norms = [], []
    for w in by_direction:
        product = products.linear(x, w["weight_ih"])
        scale, shift = _norm_parameters(product, w)
        part, mean, rstd = torch.native_layer_norm(product, product.shape[-1:], scale, shift, EPSILON)
        parts.append(part)
        norms += [product, mean, rstd]
    return Projected(parts[0] if len(parts) == 1 else torch.cat(parts, -1), tuple(norms))


def project_backward(
    grad_gx: Tensor,
    x: Tensor,
    by_direction: list[dict[str, Tensor]],
    norms: tuple[Tensor, ...],
    s: Structure,
    need_x: bool,
    need_weight: bool,
) -> tuple[Tensor | None, list[dict[str, Tensor]]]:
    """(grad_x, the gradients of weight_ih, bias_ih and weight_norm_ih of each direction)."""
    found: list[dict[str, Tensor]] = [{} for _ in by_direction]
    if s.layer_norm:
        grad_gx = _norm_backward(grad_gx, by_direction, norms, found)
    elif need_weight and s.has_bias:
        for d, part in enumerate(flat(grad_gx).sum(0).chunk(s.directions)):
            found[d]["bias_ih"] = part
    rows = flat(grad_gx)
    if need_weight:
        for d, part in enumerate(outer_sum(rows, x).chunk(s.directions)):
            found[d]["weight_ih"] = part
    grad_x = products.product(rows, joined(by_direction, "weight_ih")).view(x.shape) if need_x else None
    return grad_x, found


def joined(by_direction: list[dict[str, Tensor]], name: str) -> Tensor | None:
    """A parameter of every direction below each other; None where there is none."""
    if name not in by_direction[0]:
        return None
    return by_direction[0][name] if len(by_direction) == 1 else torch.cat([w[name] for w in by_direction])


def _norm_parameters(product: Tensor, w: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
    scale, shift = w["weight_norm_ih"], w.get("bias_ih")
    if product.device.type == "cpu" and product.dtype != torch.float64:
        # float32 parameters make torch keep mean and factor in float32 for 16-bit types too
        scale, shift = scale.float(), None if shift is None else shift.float()
    return scale, shift


def _norm_backward(
    grad_gx: Tensor,
    by_direction: list[dict[str, Tensor]],
    norms: tuple[Tensor, ...],
    found: list[dict[str, Tensor]],
) -> Tensor:
    """The gradient of the product of every direction; fills in those of weight_norm_ih and bias_ih."""
    parts = []
    for d, (w, part) in enumerate(zip(by_direction, grad_gx.chunk(len(by_direction), -1), strict=True)):
        product, mean, rstd = norms[3 * d : 3 * d + 3]
        scale, shift = _norm_parameters(product, w)
        grad_product, grad_scale, grad_shift = torch.ops.aten.native_layer_norm_backward(
            part.contiguous(), product, product.shape[-1:], mean, rstd, scale, shift,
            (True, True, shift is not None),
        )  # fmt: skip
        parts.append(grad_product)
        found[d]["weight_norm_ih"] = grad_scale.to(product.dtype)
        if shift is not None:
            found[d]["bias_ih"] = grad_shift.to(product.dtype)
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)
