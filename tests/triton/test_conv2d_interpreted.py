"""The Triton kernel of conv2d against the reference's arithmetic in fp32, run by Triton's interpreter."""

import itertools

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import fastdl
from fastdl.ops.conv2d.activations import ACTIVATIONS, NAMES, activate

epilogue_op = torch.ops.fastdl.conv2d_epilogue_triton.default
# Several tiles of rows and of columns, tails, planes of one position, more positions than a tile.
SHAPES = ((2, 5, 4, 4), (3, 17, 5, 3), (4, 8, 1, 1), (70, 40, 1, 2), (1, 2, 35, 33), (1, 1100, 2, 1))
LAYOUTS = pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])


def draw(shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool) -> tuple[Tensor, ...]:
    """y, bias, scale, residual; NaN and infinities in y."""
    generator = torch.Generator().manual_seed(1)
    y, residual = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    bias, scale = (torch.randn(shape[1], generator=generator).to(dtype) for _ in range(2))
    y[0, :2] = torch.tensor([torch.nan, -torch.inf], dtype=dtype).view(2, 1, 1)
    if channels_last:
        y, residual = (t.to(memory_format=torch.channels_last) for t in (y, residual))
    return y, bias, scale, residual


def expected(
    y: Tensor, bias: Tensor | None, scale: Tensor | None, residual: Tensor | None, relu: bool
) -> Tensor:
    value = y.float()
    value = value if scale is None else value * scale.float()[:, None, None]
    value = value if bias is None else value + bias.float()[:, None, None]
    value = value if residual is None else value + residual.float()
    rounded = value.to(y.dtype)
    return torch.where(rounded <= 0, 0, rounded) if relu else rounded


@LAYOUTS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_call_is_the_reference(shape: tuple[int, ...], channels_last: bool, dtype: torch.dtype):
    before, *rest = draw(shape, dtype, channels_last)
    for *present, relu in itertools.product((True, False), repeat=4):
        tensors = [t if wanted else None for t, wanted in zip(rest, present, strict=True)]
        y = before.clone()
        epilogue_op(y, *tensors, int(relu))
        assert_close(y, expected(before, *tensors, relu), rtol=0, atol=0, equal_nan=True)


@LAYOUTS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("activation", NAMES, ids=str)
def test_activations(activation: str | None, dtype: torch.dtype, channels_last: bool):
    before, *rest = draw((3, 17, 5, 3), dtype, channels_last)
    y = before.clone()
    epilogue_op(y, *rest, ACTIVATIONS[activation])
    truth = activate(expected(*(t.float() for t in (before, *rest)), False).double(), activation)
    assert_close(y.double(), truth, rtol=2 * torch.finfo(dtype).eps, atol=2e-6, equal_nan=True)
    assert truth.isfinite().sum() > 0.8 * truth.numel()


def test_a_code_of_no_activation():
    with pytest.raises(ValueError, match="activation must be from 0 to 8, got 9"):
        epilogue_op(torch.ones(1, 1, 2, 2), None, None, None, 9)


@LAYOUTS
def test_tensors_in_other_formats(channels_last: bool):
    before, bias, scale, residual = draw((2, 6, 5, 4), torch.float32, channels_last)
    y = before.clone()
    strided = torch.stack([bias, scale], 1)
    other = torch.contiguous_format if channels_last else torch.channels_last
    epilogue_op(y, strided[:, 0], strided[:, 1], residual.contiguous(memory_format=other), 1)
    assert_close(y, expected(before, bias, scale, residual, True), rtol=0, atol=0, equal_nan=True)
    with pytest.raises(ValueError, match="y must be contiguous or channels_last"):
        epilogue_op(before.transpose(2, 3), None, None, None, 1)


def test_nothing_to_do():
    y = torch.ones(0, 3, 2, 2)
    epilogue_op(y, None, None, y, 1)


@LAYOUTS
def test_the_public_op_is_served(channels_last: bool):
    x, weight = torch.randn(2, 4, 6, 5), torch.randn(7, 4, 3, 3)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    bias, scale, residual = torch.randn(7), torch.randn(7), torch.randn(2, 7, 6, 5)
    kwargs = dict(padding=1, scale=scale, residual=residual, activation="relu")
    with fastdl.backend("reference"):
        truth = fastdl.ops.conv2d(x, weight, bias, **kwargs)
    with fastdl.backend("triton"):
        said = fastdl.explain("conv2d", x, weight, bias, **kwargs)
        assert (said.backend, said.algorithm) == ("triton", "composed")
        assert_close(fastdl.ops.conv2d(x, weight, bias, **kwargs), truth)


def test_opcheck():
    y, *rest = draw((2, 3, 4, 4), torch.float32, False)
    torch.library.opcheck(epilogue_op, (y.nan_to_num(1, 1, 1), *rest, 1))
