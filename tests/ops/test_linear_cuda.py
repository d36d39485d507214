"""The CUDA passes of linear, executed on the CPU by emulation (csrc/emulation). Backend: cuda."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from fastdl.ops.linear import registration
from fastdl.ops.linear.activations import ACTIVATIONS, BY_OUTPUT, NAMES
from tests.emulation import library

if library.missing() is not None:
    pytest.skip(library.missing(), allow_module_level=True)

from tests.emulation.linear import Emulated

# In order, backwards, warp by warp, warp by warp backwards, random: each shows other races.
SCHEDULES = (0, 1, 2, 3, 7)
# Whole vectors; tails; a row shorter than a vector; several parts of rows; several blocks of columns.
SHAPES = ((16, 64), (37, 70), (5, 3), (1,), (200, 12), (3, 5, 132))
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def draw(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """Large values, and where there is room NaN and infinities."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 2
    if values.numel() > 9:
        values.view(-1)[:5] = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, -20.0])
    return values.to(dtype)


def assert_near(ours: Tensor, truth: Tensor, size: float) -> None:
    """Within four roundings to the dtype of the reference in float64; near 0 of `size`, the largest term."""
    tolerance = 4 * torch.finfo(ours.dtype).eps
    assert_close(ours.double(), truth.double(), rtol=tolerance, atol=tolerance * size, equal_nan=True)


def largest(t: Tensor, p: float) -> float:
    """Of the finite elements, after dropout's scale."""
    return t.double().nan_to_num(0, 0, 0).abs().max().item() / (1 - p)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("p", [0.0, 0.4])
def test_passes_are_the_reference(shape: tuple[int, ...], dtype: torch.dtype, p: float) -> None:
    seed = torch.tensor([3 - 2**50]) if p else None
    # Whether infinity times the slope of a saturated tanh is a NaN would be a matter of rounding.
    pre, grad = draw(shape, dtype, 1), draw(shape, dtype, 2).nan_to_num(torch.nan, 9, -9)
    for activation in NAMES:
        code = ACTIVATIONS[activation]
        emulated = Emulated(SCHEDULES[code % len(SCHEDULES)])
        truth = registration.linear_activation(pre.double(), seed, code, p)
        assert_near(emulated.activation(pre, seed, code, p), truth.to(dtype), largest(pre, p))
        saved = truth.to(dtype) if activation in BY_OUTPUT else pre
        args = (seed, code, p, True)
        expected = registration.linear_activation_backward(grad.double(), saved.double(), *args)
        for ours, theirs in zip(emulated.activation_backward(grad, saved, *args), expected, strict=True):
            if (
                ours.dim() == 1 and len(shape) > 1
            ):  # the bias gradient: a sum over rows, and one bad value spoils it
                assert_sums_near(ours, theirs, grad)
            else:
                assert_near(ours, theirs.to(dtype), largest(grad, p))


def assert_sums_near(ours: Tensor, truth: Tensor, terms: Tensor) -> None:
    finite = truth.isfinite()
    assert torch.equal(ours.isfinite(), finite)
    # Each term is at most about the gradient's size times the steepest slope, 1.13, and 1 / (1 - p).
    size = terms.nan_to_num(0, 0, 0).abs().flatten(0, -2).sum(0).double() * 2
    tolerance = 4 * torch.finfo(ours.dtype).eps * size + torch.finfo(torch.float32).eps * size
    if ours.dtype is torch.float64:
        tolerance = 1e-12 * size + 1e-12
    assert ((ours.double() - truth).abs() <= tolerance)[finite].all()


def test_every_schedule_gives_the_same_bits() -> None:
    pre, seed = draw((130, 70), torch.float32, 3), torch.tensor([11])
    grad = torch.randn(130, 70)
    first = (
        Emulated(0).activation(pre, seed, 2, 0.3),
        *Emulated(0).activation_backward(grad, pre, seed, 2, 0.3, True),
    )
    for schedule in (1, 2, 3, 4, 5):
        again = (
            Emulated(schedule).activation(pre, seed, 2, 0.3),
            *Emulated(schedule).activation_backward(grad, pre, seed, 2, 0.3, True),
        )
        for a, b in zip(again, first, strict=True):
            assert torch.equal(a.nan_to_num(7), b.nan_to_num(7))


@pytest.mark.parametrize("shape", [(0, 5), (3, 0)], ids=str)
def test_nothing_to_do(shape: tuple[int, int]) -> None:
    emulated, empty = Emulated(), torch.ones(shape)
    assert emulated.activation(empty, None, 1, 0.0).shape == shape
    grad_pre, grad_bias = emulated.activation_backward(empty, empty, None, 1, 0.0, True)
    assert grad_pre.shape == shape
    assert torch.equal(grad_bias, torch.zeros(shape[1]))
