"""The CUDA pass of conv2d, executed on the CPU by emulation (csrc/emulation). Backend: cuda."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from fastdl.ops.conv2d.activations import NAMES, activate
from tests.emulation import library
from tests.emulation.driver import compile_driver, run_driver

if library.missing() is not None:
    pytest.skip(library.missing(), allow_module_level=True)

from tests.emulation.conv2d import Emulated

# In order, backwards, warp by warp, warp by warp backwards, random: each shows other races.
SCHEDULES = (0, 1, 2, 3, 7)
# Vectors along planes and along channels, single values along both, planes of one position, several blocks.
SHAPES = ((2, 5, 4, 4), (2, 16, 3, 3), (3, 7, 5, 3), (4, 8, 1, 1), (2, 40, 8, 16))
DTYPES = pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=lambda d: str(d)[6:]
)
LAYOUTS = pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])


def draw(shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool) -> tuple[Tensor, ...]:
    """y, bias, scale, residual; NaN and infinities in y, and sums that are 0."""
    generator = torch.Generator().manual_seed(1)
    y, residual = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    bias, scale = (torch.randn(shape[1], generator=generator).to(dtype) for _ in range(2))
    y[:, :3] = torch.tensor([torch.nan, torch.inf, -torch.inf], dtype=dtype).view(3, 1, 1)
    y[:, 3:5] = residual[:, 3:5] = bias[3:5] = 0
    if channels_last:
        y, residual = (t.to(memory_format=torch.channels_last) for t in (y, residual))
    return y, bias, scale, residual


def expected(
    y: Tensor, bias: Tensor | None, scale: Tensor | None, residual: Tensor | None, relu: bool
) -> Tensor:
    """In the kernel's arithmetic: float32, float64 for float64, rounded once; what rounds to 0 or less is 0."""
    wide = torch.promote_types(y.dtype, torch.float32)
    value = y.to(wide)
    value = value if scale is None else value * scale.to(wide)[:, None, None]
    value = value if bias is None else value + bias.to(wide)[:, None, None]
    value = value if residual is None else value + residual.to(wide)
    rounded = value.to(y.dtype)
    return torch.where(rounded <= 0, 0, rounded) if relu else rounded


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    assert ours.dtype == theirs.dtype
    assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


@DTYPES
@LAYOUTS
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_call_is_the_reference(shape: tuple[int, ...], channels_last: bool, dtype: torch.dtype) -> None:
    y, *rest = draw(shape, dtype, channels_last)
    for i, (*present, relu) in enumerate(itertools.product((True, False), repeat=4)):
        tensors = [t if wanted else None for t, wanted in zip(rest, present, strict=True)]
        emulated = Emulated(SCHEDULES[i % len(SCHEDULES)])
        assert_same(emulated.epilogue(y, *tensors, "relu" if relu else None), expected(y, *tensors, relu))


@DTYPES
@LAYOUTS
@pytest.mark.parametrize("activation", NAMES, ids=str)
def test_activations(activation: str | None, channels_last: bool, dtype: torch.dtype) -> None:
    y, *rest = draw((2, 16, 3, 3), dtype, channels_last)
    truth = activate(expected(*(t.double() for t in (y, *rest)), False), activation)
    found = Emulated(7).epilogue(y, *rest, activation).double()
    eps = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    assert_close(found, truth, rtol=torch.finfo(dtype).eps + 4 * eps, atol=16 * eps, equal_nan=True)
    assert truth.isfinite().sum() > 0.7 * truth.numel()


@DTYPES
@LAYOUTS
def test_memory_off_alignment(channels_last: bool, dtype: torch.dtype) -> None:
    y, *rest = draw((2, 16, 4, 4), dtype, channels_last)
    assert_same(Emulated(7, skew=1).epilogue(y, *rest, "relu"), expected(y, *rest, True))


@LAYOUTS
def test_every_schedule_gives_the_same_bits(channels_last: bool) -> None:
    y, *rest = draw((3, 24, 9, 8), torch.bfloat16, channels_last)
    first = Emulated(0).epilogue(y, *rest, "relu")
    for schedule in range(1, 6):
        assert_same(Emulated(schedule).epilogue(y, *rest, "relu"), first)


@pytest.mark.parametrize("shape", [(0, 5, 2, 2), (2, 0, 3, 3), (2, 3, 0, 4)], ids=str)
def test_nothing_to_do(shape: tuple[int, ...]) -> None:
    assert Emulated().epilogue(torch.ones(shape), None, None, torch.ones(shape), "relu").shape == shape


def test_what_31_bits_cannot_number_is_cut_into_launches(tmp_path: Path) -> None:
    """With launches of 64 items instead of 2^30."""
    csrc = tmp_path / "csrc"
    shutil.copytree(library.CSRC, csrc, ignore=shutil.ignore_patterns("cpu"))
    source = csrc / "common/cuda/divide.cuh"
    text = source.read_text()
    assert text.count("int64_t{1} << 30") == 1
    source.write_text(text.replace("int64_t{1} << 30", "64"))
    program = compile_driver("conv2d", "plain", csrc, tmp_path)
    assert run_driver(program, 7, "--large", 1) is None
