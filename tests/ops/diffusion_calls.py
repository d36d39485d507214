"""Calls of the raw diffusion operators in every combination of what they may have."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from fastdl.ops.diffusion import Table, schema
from fastdl.ops.diffusion.table import COLUMNS

OUTPUTS = schema.WANT_PREV | schema.WANT_X0 | schema.WANT_VALUE
GRADIENTS = schema.NEED_SAMPLE | schema.NEED_MODEL | schema.NEED_HISTORY | schema.NEED_NOISE
ROWS = 7


def table() -> Tensor:
    generator = torch.Generator().manual_seed(9)
    columns = {name: torch.randn(ROWS, generator=generator) for name in COLUMNS}
    return Table(ROWS, **columns).on(torch.device("cpu"))


def calls(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Iterator[tuple[tuple, tuple]]:
    """(arguments of diffusion_step, arguments of diffusion_step_backward)."""
    generator = torch.Generator().manual_seed(3)

    def draw(batches: int = 1) -> Tensor:
        return torch.randn(batches * shape[0], *shape[1:], generator=generator).to(dtype)

    for guided, history, made, clip, rows in itertools.product(
        (0, 1), (0, 1), (0, 1), (0, 1), ("int", "one", "each")
    ):
        own = (schema.GUIDED if guided else 0) | (schema.CLIP if clip else 0)
        where = {"int": None, "one": torch.tensor(3), "each": torch.arange(shape[0]) * 3 % ROWS}[rows]
        step = (
            draw(), draw(1 + guided), draw() if history else None, None if made else draw(),
            torch.tensor([2**40 + 5, -7]) if made else None, where, 2, table(), OUTPUTS | own, 2.5, 0.0, 1.3, 0.9,
        )  # fmt: skip
        given = draw(), draw() if history else None, *step[:2]
        yield step, (*given, where, 2, table(), GRADIENTS | own, 2.5, 1.3)


def whole_sample_calls(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Iterator[tuple]:
    """Arguments of diffusion_step with a rescale, a threshold and both: samples of unlike spread and size."""
    generator = torch.Generator().manual_seed(4)

    def draw(batches: int = 1) -> Tensor:
        t = torch.randn(batches * shape[0], *shape[1:], generator=generator)
        spread = torch.linspace(0.5, 3, len(t)).reshape(-1, *(1,) * (t.dim() - 1))
        return (t * spread + 1).to(dtype)

    for rescale, threshold, made, rows in itertools.product(
        (0.7, 0.0), (1, 0), (0, 1), ("int", "one", "each")
    ):
        if not (rescale or threshold):
            continue
        own = (schema.GUIDED if rescale else 0) | (schema.THRESHOLD if threshold else schema.CLIP)
        where = {"int": None, "one": torch.tensor(3), "each": torch.arange(shape[0]) * 3 % ROWS}[rows]
        yield (
            draw(), draw(2 if rescale else 1), draw(), None if made else draw(),
            torch.tensor([2**40 + 5, -7]) if made else None, where, 2, table(), OUTPUTS | own,
            2.5, rescale, 4.0, (0.0, 0.37, 0.995, 1.0)[made + 2 * bool(rescale)],
        )  # fmt: skip


def threshold_calls(dtype: torch.dtype, quantiles: tuple[float, ...]) -> Iterator[tuple]:
    """Arguments of diffusion_step whose x_0 is the sample itself, thresholded: samples [5, 501] drawn, repeated, with
    one NaN, with one infinity, tiny."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(1, 501, generator=generator, dtype=dtype) * 8
    repeated = torch.randint(-3, 4, (1, 501), generator=generator).to(dtype)
    one_nan, one_infinite = drawn.clone(), drawn.clone()
    one_nan[0, 77], one_infinite[0, 99] = -torch.nan, -torch.inf
    x = torch.cat((drawn, repeated, one_nan, one_infinite, torch.full_like(drawn, 1e-40)))
    identity, flags = Table(1, X0_SAMPLE=1.0).on(torch.device("cpu")), schema.WANT_X0 | schema.THRESHOLD
    for quantile in quantiles:
        yield x, None, None, None, None, None, 0, identity, flags, 1.0, 0.0, 1e30, quantile


def assert_same_bits(ours: Tensor, expected: Tensor) -> None:
    """Equal, and NaN in the same places."""
    assert torch.equal(ours.isnan(), expected.isnan())
    assert torch.equal(ours.nan_to_num(), expected.nan_to_num())
