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
