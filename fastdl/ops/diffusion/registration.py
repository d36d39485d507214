"""The raw operators: schemas, the reference behind every device without a kernel, shapes for fake tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from ..raw_operators import define
from . import schema
from .reference import Options, dense_like, noise_like, reference, row_coefficients
from .table import HISTORY, MODEL, NOISE, SAMPLE, X0, X0_MODEL, X0_NOISE, X0_SAMPLE


def diffusion_step(
    sample: Tensor,
    model_output: Tensor | None,
    history: Tensor | None,
    noise: Tensor | None,
    seed: Tensor | None,
    rows: Tensor | None,
    row: int,
    table: Tensor,
    flags: int,
    guidance: float,
    rescale: float,
    limit: float,
    quantile: float,
) -> tuple[Tensor, Tensor, Tensor]:
    options = Options(flags, guidance, rescale, limit, quantile)
    prev, x_0, value = reference(sample, model_output, history, noise, seed, rows, row, table, options)
    return (
        dense_like(sample).copy_(prev) if flags & schema.WANT_PREV else sample.new_empty(0),
        dense_like(sample).copy_(x_0) if flags & schema.WANT_X0 else sample.new_empty(0),
        value.contiguous() if flags & schema.WANT_VALUE else table.new_empty(0),
    )


def fake_diffusion_step(
    sample: Tensor,
    model_output: Tensor | None,
    history: Tensor | None,
    noise: Tensor | None,
    seed: Tensor | None,
    rows: Tensor | None,
    row: int,
    table: Tensor,
    flags: int,
    *scalars: float,
) -> tuple[Tensor, Tensor, Tensor]:
    samples = 1 if rows is None else rows.numel()
    return (
        dense_like(sample) if flags & schema.WANT_PREV else sample.new_empty(0),
        dense_like(sample) if flags & schema.WANT_X0 else sample.new_empty(0),
        table.new_empty(samples if flags & schema.WANT_VALUE else 0),
    )


def diffusion_step_backward(
    grad_prev: Tensor | None,
    grad_x0: Tensor | None,
    sample: Tensor | None,
    model_output: Tensor | None,
    rows: Tensor | None,
    row: int,
    table: Tensor,
    flags: int,
    guidance: float,
    limit: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    like = grad_prev if grad_prev is not None else grad_x0
    dtype = torch.float64 if like.dtype is torch.float64 else torch.float32
    coefficients, shape = row_coefficients(like, rows, row, table, dtype)

    def c(column: int) -> Tensor:
        return coefficients[..., column].reshape(shape)

    zero = like.new_zeros((), dtype=dtype)
    g_prev = zero if grad_prev is None else grad_prev.to(dtype)
    g_x0 = (zero if grad_x0 is None else grad_x0.to(dtype)) + c(X0) * g_prev
    if flags & schema.CLIP:
        x_0 = c(X0_SAMPLE) * sample.to(dtype)
        if model_output is not None:
            m = model_output.to(dtype)
            if flags & schema.GUIDED:
                u, conditional = m.chunk(2)
                m = u + guidance * (conditional - u)
            x_0 = x_0 + c(X0_MODEL) * m
        g_x0 = torch.where(x_0.abs() <= limit, g_x0, 0.0)
    g_model = c(MODEL) * g_prev + c(X0_MODEL) * g_x0
    if flags & schema.GUIDED:
        g_model = torch.cat(((1 - guidance) * g_model, guidance * g_model))
    gradients = (
        (schema.NEED_SAMPLE, c(SAMPLE) * g_prev + c(X0_SAMPLE) * g_x0),
        (schema.NEED_MODEL, g_model),
        (schema.NEED_HISTORY, c(HISTORY) * g_prev),
        (schema.NEED_NOISE, c(NOISE) * g_prev + c(X0_NOISE) * g_x0),
    )
    return tuple(
        torch.empty_like(f).copy_(g) if flags & need else like.new_empty(0)
        for (need, g), f in zip(gradients, _gradients_like(like, flags), strict=True)
    )


def _gradients_like(like: Tensor, flags: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    guided = torch.cat((like, like)) if flags & schema.GUIDED else like
    return dense_like(like), dense_like(guided), dense_like(like), dense_like(like)


def fake_diffusion_step_backward(
    grad_prev: Tensor | None,
    grad_x0: Tensor | None,
    sample: Tensor | None,
    model_output: Tensor | None,
    rows: Tensor | None,
    row: int,
    table: Tensor,
    flags: int,
    *scalars: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    like = grad_prev if grad_prev is not None else grad_x0
    needs = (schema.NEED_SAMPLE, schema.NEED_MODEL, schema.NEED_HISTORY, schema.NEED_NOISE)
    return tuple(
        f if flags & need else like.new_empty(0)
        for need, f in zip(needs, _gradients_like(like, flags), strict=True)
    )


def normal_noise(like: Tensor, seed: Tensor) -> Tensor:
    return noise_like(like, seed).to(like.dtype)


def fake_normal_noise(like: Tensor, seed: Tensor) -> Tensor:
    return dense_like(like)


library = define(schema.SCHEMAS, globals())
