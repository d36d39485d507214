"""Hypothesis: drawn shapes, strides, dtypes and arguments of a step and of added noise, against the definition."""

from __future__ import annotations

import pytest
import torch
from drawn_calls import LAST_CASE, strided
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import fastdl
from fastdl import _extension
from fastdl.ops.diffusion import Schedule, Table
from fastdl.ops.diffusion.reference import dense_like
from fastdl.ops.diffusion.table import COLUMNS

pytestmark = pytest.mark.skipif(not _extension.cpu.loaded, reason="CPU kernels are not loaded")
DTYPES = (torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16)
ROWS = 7
SIZES = st.one_of(st.sampled_from([1, 2, 3, 4, 7, 8, 15, 16, 17, 31, 32, 33, 63, 65]), st.integers(0, 40))
FEW = st.integers(0, 5)


@st.composite
def shapes(draw) -> tuple[int, ...]:
    kinds = draw(st.sampled_from([(), (SIZES,), (FEW, SIZES), (FEW, FEW, SIZES)]))
    return draw(FEW), *(draw(kind) for kind in kinds)


@st.composite
def timesteps(draw, shape: tuple[int, ...]) -> int | Tensor:
    """An int, a tensor of one, or one for each sample, or for each of its rows."""
    kind = draw(st.sampled_from(["int", "one", "each", "rows"]))
    if kind == "int":
        return draw(st.integers(0, ROWS - 1))
    sizes = {"one": (), "each": shape[:1], "rows": shape[:2]}[kind]
    dtype = draw(st.sampled_from([torch.int64, torch.int32]))
    seed = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    return torch.randint(0, ROWS, sizes, generator=seed).to(dtype)


@st.composite
def tensors(draw, shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """Of any strides, or channels last."""
    if len(shape) == 4 and draw(st.booleans()):
        drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        return drawn.to(dtype).to(memory_format=torch.channels_last)
    return draw(strided(shape, dtype, seed))


def table(seed: int, leave_out: list[str]) -> Table:
    generator = torch.Generator().manual_seed(seed)
    columns = {name: torch.randn(ROWS, generator=generator) for name in COLUMNS}
    return Table(ROWS, **{name: column for name, column in columns.items() if name not in leave_out})


def on_both(call: object) -> list[tuple[Tensor, ...]]:
    found = []
    for backend in ("cpu", "reference"):
        with fastdl.backend(backend):
            found.append(call())
    return found


def close(ours: Tensor, truth: Tensor, x: Tensor, made: bool) -> None:
    """Both round once; noise made in a kernel is fp32, and guidance and limits cancel."""
    assert (ours.shape, ours.dtype) == (truth.shape, truth.dtype)
    assert ours.numel() == 0 or ours.stride() == dense_like(x).stride()
    unit = max(torch.finfo(ours.dtype).eps, torch.finfo(torch.float32).eps if made else 0.0)
    scale = 10 * max(truth.double().abs().max().item(), 1.0) if truth.numel() else 1.0
    torch.testing.assert_close(ours.double(), truth.double(), rtol=0, atol=4 * unit * scale)


@given(st.data())
def test_a_step(data):
    draw = data.draw
    shape, dtype, seed = draw(shapes()), draw(st.sampled_from(DTYPES)), draw(st.integers(0, 1000))
    guided = draw(st.booleans())
    limit = draw(st.sampled_from([{}, dict(clip=0.8), dict(threshold=(0.9, 2.0))]))
    t = draw(timesteps(shape))
    if "threshold" in limit and isinstance(t, Tensor) and t.dim() > 1:
        t = t[:, 0] if shape[1] else 0
    keywords = dict(limit)
    if guided:
        keywords |= dict(guidance_scale=2.5, guidance_rescale=draw(st.sampled_from([0.0, 0.7])))
    if draw(st.booleans()):
        keywords["history"] = draw(tensors(shape, dtype, seed + 1))
    made = draw(st.booleans())
    keywords |= (
        dict(seed=torch.tensor([seed, 5])) if made else dict(noise=draw(tensors(shape, dtype, seed + 2)))
    )
    x = draw(tensors(shape, dtype, seed + 3))
    m = draw(tensors(((1 + guided) * shape[0], *shape[1:]), dtype, seed + 4))
    coefficients = table(seed, draw(st.lists(st.sampled_from(COLUMNS), max_size=5)))
    LAST_CASE.write_text(f"diffusion_step {shape} {dtype} {x.stride()} {m.stride()} {t} {keywords.keys()}\n")

    def call() -> tuple[Tensor, ...]:
        return fastdl.ops.diffusion_step(x, m, t, coefficients, **keywords)[:2]

    for ours, truth in zip(*on_both(call), strict=True):
        close(ours, truth, x, made)


@given(st.data())
def test_added_noise(data):
    draw = data.draw
    shape, dtype, seed = draw(shapes()), draw(st.sampled_from(DTYPES)), draw(st.integers(0, 1000))
    schedule = Schedule.from_sigmas(torch.linspace(0, 3, ROWS, dtype=torch.float64))
    t, made = draw(timesteps(shape)), draw(st.booleans())
    x = draw(tensors(shape, dtype, seed))
    # noise broadcasts
    of_noise = [1 if draw(st.integers(0, 3)) == 0 else n for n in shape]
    keywords = (
        dict(seed=torch.tensor([seed, -5]))
        if made
        else dict(noise=draw(tensors(tuple(of_noise), dtype, seed + 1)))
    )
    LAST_CASE.write_text(f"add_noise {shape} {dtype} {x.stride()} {t} {keywords.keys()} {of_noise}\n")
    (ours,), (truth,) = on_both(lambda: (fastdl.ops.add_noise(x, t, schedule, **keywords),))
    close(ours, truth, x, made)
