"""A diffusion step in plain PyTorch: the definition every backend is held to.

Coefficients are fp32 whatever the tensors are; fp64 tensors are computed in fp64, all others in fp32, and rounded
once at the end.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..memory_format import is_channels_last
from ..normal import normals
from . import schema
from .table import HISTORY, MODEL, NOISE, SAMPLE, VALUE, X0, X0_MODEL, X0_NOISE, X0_SAMPLE


class Options(NamedTuple):
    """What a step does besides its table: see schema.py."""

    flags: int
    guidance: float = 1.0
    rescale: float = 0.0
    limit: float = 1.0
    quantile: float = 0.995

    def has(self, flag: int) -> bool:
        return self.flags & flag != 0


def reference(
    sample: Tensor,
    model_output: Tensor | None,
    history: Tensor | None,
    noise: Tensor | None,
    seed: Tensor | None,
    rows: Tensor | None,
    row: int,
    table: Tensor,
    options: Options,
) -> tuple[Tensor, Tensor, Tensor]:
    """(result, x_0, value of each sample); all three are computed, whatever the flags want."""
    dtype = torch.float64 if sample.dtype is torch.float64 else torch.float32
    coefficients, shape = row_coefficients(sample, rows, row, table, dtype)

    def c(column: int) -> Tensor:
        return coefficients[..., column].reshape(shape)

    x = sample.to(dtype)
    m = None if model_output is None else guided(model_output.to(dtype), options)
    n = None if noise is None else noise.to(dtype)
    if n is None and seed is not None:
        n = noise_like(sample, seed).to(dtype)
    x_0 = _sum(c(X0_SAMPLE) * x, (c(X0_MODEL), m), (c(X0_NOISE), n))
    if options.has(schema.THRESHOLD):
        x_0 = threshold(x_0, options)
    elif options.has(schema.CLIP):
        x_0 = x_0.clamp(-options.limit, options.limit)
    h = None if history is None else history.to(dtype)
    result = _sum(c(SAMPLE) * x, (c(X0), x_0), (c(MODEL), m), (c(HISTORY), h), (c(NOISE), n))
    return result.to(sample.dtype), x_0.to(sample.dtype), coefficients[..., VALUE].float()


def row_coefficients(
    sample: Tensor, rows: Tensor | None, row: int, table: Tensor, dtype: torch.dtype
) -> tuple[Tensor, tuple[int, ...]]:
    """Coefficients [leading sizes or one, columns], and the shape that broadcasts one column over `sample`.

    A row outside the table is an IndexError on a CPU; on a GPU, where that would need a wait, its sample is NaN.
    """
    if rows is None:
        picked = table[row : row + 1]
    elif table.device.type == "cpu":
        picked = table.index_select(0, rows.flatten())
    else:
        flat = rows.flatten()
        inside = (flat >= 0) & (flat < table.shape[0])
        picked = table.index_select(0, flat.clamp(0, table.shape[0] - 1))
        picked = torch.where(inside[:, None], picked, torch.nan)
    if rows is None or rows.numel() == 1:
        return picked.to(dtype), (1,) * sample.dim()
    return picked.to(dtype), (*rows.shape, *(1,) * (sample.dim() - rows.dim()))


def guided(model_output: Tensor, options: Options) -> Tensor:
    """Classifier-free guidance: [2 B, ...], unconditional first -> u + guidance * (c - u), [B, ...].

    With rescale phi, times phi * std(c) / std(result) + 1 - phi, std over each sample, the ratio 1 where
    std(result) is 0, and no rescale of a sample of one element.
    Source: Ho and Salimans 2022; Lin et al. 2023, section 3.4.
    """
    if not options.has(schema.GUIDED):
        return model_output
    u, c = model_output.chunk(2)
    m = u + options.guidance * (c - u)
    if options.rescale == 0.0 or m.dim() < 2 or m[0].numel() < 2:
        return m
    dims = tuple(range(1, m.dim()))
    std_c, std_m = c.std(dims, keepdim=True), m.std(dims, keepdim=True)
    ratio = torch.where(std_m == 0, 1.0, std_c / torch.where(std_m == 0, 1.0, std_m))
    return m * (options.rescale * ratio + (1 - options.rescale))


def threshold(x_0: Tensor, options: Options) -> Tensor:
    """Dynamic thresholding: clamp(x_0, -s, s) / s, where s is the quantile of each sample's |x_0| (linear between
    order statistics), at least 1 and at most `limit`. A sample with a NaN is NaN. Source: Saharia et al. 2022."""
    magnitudes = x_0.abs().reshape(x_0.shape[0], math.prod(x_0.shape[1:]))
    if magnitudes.shape[1] == 0:
        return x_0
    position = options.quantile * (magnitudes.shape[1] - 1)
    low = int(position)
    ordered = magnitudes.sort(1).values  # NaN last
    at_low, at_high = ordered[:, low], ordered[:, min(low + 1, magnitudes.shape[1] - 1)]
    s = (at_low + (at_high - at_low) * (position - low)).clamp(1.0, max(options.limit, 1.0))
    s = torch.where(ordered[:, -1].isnan(), torch.nan, s)
    s = s.reshape(-1, *(1,) * (x_0.dim() - 1))
    return torch.clamp(x_0, -s, s) / s


def noise_like(sample: Tensor, seed: Tensor) -> Tensor:
    """The float32 deviates of `seed` in the shape of `sample`, counted in its memory order (see `dense_like`)."""
    return dense_like(sample, torch.float32).copy_(_in_order(sample, normals(sample.numel(), seed)))


def _in_order(sample: Tensor, flat: Tensor) -> Tensor:
    if is_channels_last(sample):
        N, C, H, W = sample.shape
        return flat.reshape(N, H, W, C).permute(0, 3, 1, 2)
    return flat.reshape(sample.shape)


def dense_like(t: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """What an operator returns for `t`: channels last if `t` is, else contiguous."""
    memory_format = torch.channels_last if is_channels_last(t) else torch.contiguous_format
    return torch.empty_like(t, dtype=dtype or t.dtype, memory_format=memory_format)


def _sum(total: Tensor, *products: tuple[Tensor, Tensor | None]) -> Tensor:
    for coefficient, tensor in products:
        if tensor is not None:
            total = total + coefficient * tensor
    return total
