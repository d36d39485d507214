"""Where fused kernels go wrong: NaN and infinity, ties, closed ReLUs, empty batches, odd shapes."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from conv_relu_maxpool_plans import (
    COMPOSED,
    KERNELS,
    PLANS,
    REFERENCE,
    WINOGRAD,
    WITHOUT_KERNELS,
    eager,
    forced,
)
from torch.testing import assert_close

import fastdl
from fastdl.ops import conv_relu_maxpool
from fastdl.testing.conv_relu_maxpool import Sample

pytestmark = pytest.mark.isa

BLOCK = dict(padding=1, pool_size=2)
# Winograd's error is 1e-6 of the largest product; everything else is nearer.
CLOSE = dict(rtol=1e-4, atol=1e-4)


def inputs(C=9, H=13, W=12, C_out=17, N=2, seed=0, dtype=torch.float32, channels_last=False):
    return Sample(N, C, H, W, C_out, channels_last=channels_last).inputs(dtype, seed)


def positions(*shape, count=9):
    """Corners and some inner points of a tensor."""
    corners = list(itertools.product(*[(0, n - 1) for n in shape]))
    generator = torch.Generator().manual_seed(1)
    inner = [tuple(int(torch.randint(n, (), generator=generator)) for n in shape) for _ in range(count)]
    return corners[:: max(1, len(corners) // 4)] + inner


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("pool_size", [2, None], ids=["pool", "no pool"])
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
def test_a_bad_number_in_x_spreads_as_in_eager_and_nowhere_else(plan, bad, pool_size, channels_last):
    for position in positions(2, 9, 13, 12):
        x, weight, bias = inputs(channels_last=channels_last)
        x[position] = bad
        with forced(plan):
            output = conv_relu_maxpool(x, weight, bias, padding=1, pool_size=pool_size)
        expected = eager(x, weight, bias, padding=1, pool_size=pool_size)
        assert not expected.isfinite().all() or bad == -math.inf
        assert_close(output, expected, equal_nan=True, **CLOSE)


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf], ids=str)
def test_a_bad_number_in_the_weight_stays_in_its_channel(plan, bad):
    """Without padding: whether infinity meets the padding's zeros is the implementation's choice in torch too."""
    for position in positions(17, 9, 3, 3):
        x, weight, bias = inputs()
        weight[position] = bad
        with forced(plan):
            output = conv_relu_maxpool(x, weight, bias, pool_size=2)
        assert_close(output, eager(x, weight, bias, pool_size=2), equal_nan=True, **CLOSE)


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf], ids=str)
def test_a_bad_number_in_the_bias_stays_in_its_channel(plan, bad):
    x, weight, bias = inputs()
    bias[5] = bad
    with forced(plan):
        output = conv_relu_maxpool(x, weight, bias, **BLOCK)
    assert_close(output, eager(x, weight, bias, **BLOCK), equal_nan=True, **CLOSE)


@pytest.mark.parametrize("plan", [p for p in PLANS if p.exact_products], ids=str)
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
def test_the_last_nan_of_a_window_is_its_maximum(plan, channels_last):
    x, weight, bias = inputs(channels_last=channels_last)
    x[:, :, 3:9, 2:8] = math.nan
    with forced(plan):
        output, indices = conv_relu_maxpool(x, weight, bias, **BLOCK, return_indices=True)
    expected, expected_indices = eager(x, weight, bias, **BLOCK, return_indices=True)
    assert_close(output, expected, equal_nan=True, **CLOSE)
    assert_close(indices[expected.isnan()], expected_indices[expected.isnan()], rtol=0, atol=0)


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("pool_size", [2, None], ids=["pool", "no pool"])
def test_nan_is_not_closed_by_the_relu(plan, pool_size):
    """Its gradient passes, as in eager."""
    results = []
    for call in (conv_relu_maxpool, eager):
        x, weight, bias = inputs()
        x[0, 2, 4, 5] = math.nan
        for t in (x, weight, bias):
            t.requires_grad_()
        with forced(plan):
            call(x, weight, bias, padding=1, pool_size=pool_size).sum().backward()
        results.append([t.grad for t in (x, weight, bias)])
    for ours, theirs in zip(*results, strict=True):
        assert_close(ours, theirs, equal_nan=True, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("what", ["weight", "x"])
def test_all_equal_windows_choose_their_first_position(plan, channels_last, what):
    """Zero products make every window a tie in any algorithm; the bias opens every other channel."""
    x, weight, bias = inputs(channels_last=channels_last)
    {"weight": weight, "x": x}[what].zero_()
    bias = torch.where(torch.arange(17) % 2 == 0, 1.0, -1.0)
    with forced(plan):
        output, indices = conv_relu_maxpool(x, weight, bias, **BLOCK, return_indices=True)
    expected, expected_indices = eager(x, weight, bias, **BLOCK, return_indices=True)
    assert_close(output, expected, rtol=0, atol=0)
    assert_close(indices, expected_indices, rtol=0, atol=0)


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("pool_size", [2, None], ids=["pool", "no pool"])
def test_a_relu_closed_everywhere(plan, pool_size):
    x, weight, bias = (t.requires_grad_() for t in inputs())
    with forced(plan):
        output = conv_relu_maxpool(x, weight, bias - 1e3, padding=1, pool_size=pool_size)
        output.backward(torch.full_like(output, math.inf))  # a closed window does not even multiply by zero
    assert output.count_nonzero() == 0
    for t in (x, weight, bias):
        assert t.grad.count_nonzero() == 0


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("zero", [0.0, -0.0], ids=["+0", "-0"])
def test_zero_of_either_sign_is_closed(plan, zero):
    x, weight, bias = inputs()
    bias = torch.full_like(bias, zero)
    weight = torch.full_like(weight, zero).requires_grad_()
    bias.requires_grad_()
    with forced(plan):
        output = conv_relu_maxpool(-x.abs(), weight, bias, **BLOCK)
        output.sum().backward()
    assert_close(output, torch.zeros_like(output), rtol=0, atol=0)
    assert weight.grad.count_nonzero() == 0
    assert bias.grad.count_nonzero() == 0


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("pool_size", [2, None], ids=["pool", "no pool"])
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_an_empty_batch(plan, pool_size, channels_last, dtype):
    """No images: an empty output, an empty gradient, and zeros for the parameters."""
    plan.skip_unless_it_takes(dtype)
    x, weight, bias = inputs(N=0, dtype=dtype, channels_last=channels_last)
    for t in (x, weight, bias):
        t.requires_grad_()
    with forced(plan):
        output = conv_relu_maxpool(x, weight, bias, padding=1, pool_size=pool_size)
        output.sum().backward()
    assert output.shape == ((0, 17, 6, 6) if pool_size else (0, 17, 13, 12))
    assert output.dtype == dtype
    assert x.grad.shape == x.shape
    for t in (weight, bias):
        assert_close(t.grad, torch.zeros_like(t), rtol=0, atol=0)


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("shape", [(2, 9, 0, 5), (2, 9, 5, 0), (2, 9, 0, 0)], ids=str)
def test_an_image_without_rows_or_columns_is_refused(plan, shape):
    """As in torch, even where the padding alone would be large enough."""
    _, weight, bias = inputs()
    with pytest.raises(RuntimeError):
        eager(torch.zeros(shape), weight, bias, padding=2, pool_size=2)
    with forced(plan), pytest.raises(ValueError, match="x must not be empty"):
        conv_relu_maxpool(torch.zeros(shape), weight, bias, padding=2, pool_size=2)


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_no_channels_is_refused(plan):
    with forced(plan), pytest.raises(ValueError, match="weight must not be empty"):
        conv_relu_maxpool(torch.zeros(2, 0, 5, 5), torch.zeros(4, 0, 3, 3))


SIZES = [1, 2, 3, 4, 5, 6, 7, 8, 15, 16, 17, 31, 33, 63, 65]


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("pool_size", [2, None], ids=["pool", "no pool"])
def test_every_size_around_tiles_and_vectors(plan, channels_last, pool_size):
    for size, (name, other) in itertools.product(
        SIZES, [("H", 9), ("W", 9), ("C", 3), ("C_out", 5), ("N", 1)]
    ):
        shape = dict(C=other, H=9, W=9, C_out=other, N=1)
        if name == "N":
            if size > 8:
                continue
            shape |= dict(C=3, C_out=5)
        shape[name] = size
        if pool_size and min(shape["H"], shape["W"]) < 2:
            continue
        x, weight, bias = inputs(**shape, channels_last=channels_last)
        with forced(plan):
            output = conv_relu_maxpool(x, weight, bias, padding=1, pool_size=pool_size)
        expected = eager(x, weight, bias, padding=1, pool_size=pool_size)
        assert_close(output, expected, **CLOSE, msg=lambda text, shape=shape: f"{shape}: {text}")


POOLS = [
    dict(pool_size=2),
    dict(pool_size=2, ceil_mode=True),
    dict(pool_size=3, pool_stride=2, pool_padding=1),
    dict(pool_size=3, pool_stride=2, pool_padding=1, ceil_mode=True),
    dict(pool_size=(1, 3), pool_stride=(2, 1)),
    dict(pool_size=(3, 1), pool_padding=(1, 0), ceil_mode=True),
    dict(pool_size=2, pool_stride=5),
    dict(pool_size=2, pool_stride=1, pool_dilation=3),
    dict(pool_size=4, pool_stride=3, pool_padding=2, pool_dilation=(1, 2), ceil_mode=True),
    dict(pool_size=1),
    dict(pool_size=(15, 17), pool_padding=(7, 8), pool_stride=1),
]
CONVOLUTIONS = [
    (dict(padding=1), (3, 3)),
    (dict(stride=2), (1, 1)),
    (dict(stride=(1, 3), padding=(0, 2)), (2, 4)),
    (dict(dilation=(2, 1), padding=(3, 0)), (3, 2)),
    (dict(padding=(4, 4)), (5, 5)),
    (dict(padding=9, stride=3), (7, 7)),
]


@pytest.mark.parametrize("plan", [p for p in PLANS if p != WINOGRAD], ids=str)
@pytest.mark.parametrize("pool", [*POOLS, {}], ids=str)
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
def test_pools_times_convolutions(plan, pool, channels_last):
    """Values, indices and the gradient of x where they are torch's own: small integers, ties included."""
    for kwargs, K in CONVOLUTIONS:
        sample = Sample(2, 3, 17, 19, 6, K=K, channels_last=channels_last, kwargs=kwargs | pool)
        x, weight, bias = sample.inputs(torch.float32, integers=True)
        wanted = dict(return_indices=True) if pool else {}
        results = []
        for call in (conv_relu_maxpool, eager):
            leaf = x.clone().requires_grad_()
            with forced(plan):
                output = call(leaf, weight, bias, **sample.kwargs, **wanted)
                output, indices = output if pool else (output, torch.empty(0))
                (gradient,) = torch.autograd.grad(output, leaf, output.detach())
            results.append((output, indices, gradient))
        for ours, theirs in zip(*results, strict=True):
            assert_close(ours, theirs, rtol=0, atol=0, msg=lambda text, s=sample: f"{s}: {text}")


@pytest.mark.parametrize("plan", [p for p in PLANS if p != WINOGRAD], ids=str)
def test_a_window_in_the_padding_alone(plan):
    """Dilation can step over a small image. torch gives -inf; the same, or a refusal, but nothing else."""
    x, weight = torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
    kwargs = dict(pool_size=(1, 2), pool_stride=1, pool_padding=(0, 1), pool_dilation=(1, 2))
    with forced(plan):
        try:
            output = conv_relu_maxpool(x, weight, **kwargs)
        except ValueError as error:
            output = error
    if not isinstance(output, ValueError):
        assert_close(output, eager(x, weight, **kwargs), rtol=0, atol=0)


@pytest.mark.parametrize("plan", [REFERENCE, COMPOSED], ids=str)
def test_groups(plan):
    for groups, C_out in [(2, 6), (3, 3), (6, 6), (6, 12)]:
        sample = Sample(2, 6, 9, 8, C_out, kwargs=dict(groups=groups, **BLOCK))
        x, weight, bias = sample.inputs(torch.float32)
        with forced(plan):
            output = conv_relu_maxpool(x, weight, bias, **sample.kwargs)
        assert_close(output, eager(x, weight, bias, **sample.kwargs), **CLOSE)


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("K", [(3, 3), (2, 4), (1, 2)], ids=str)
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_padding_by_name(plan, K, padding):
    sample = Sample(2, 3, 9, 10, 6, K=K, kwargs=dict(pool_size=2))
    if not plan.serves(sample, torch.float32):
        pytest.skip(f"{plan} has 3x3 kernels only")
    x, weight, bias = sample.inputs(torch.float32)
    with forced(plan):
        output = conv_relu_maxpool(x, weight, bias, padding=padding, pool_size=2)
    assert_close(output, eager(x, weight, bias, padding=padding, pool_size=2), **CLOSE)


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_one_image_without_a_batch(plan):
    x, weight, bias = inputs()
    with forced(plan):
        single, indices = conv_relu_maxpool(x[1], weight, bias, **BLOCK, return_indices=True)
        batch, batch_indices = conv_relu_maxpool(x[1:], weight, bias, **BLOCK, return_indices=True)
    assert single.shape == (17, 6, 6)
    assert_close(single, batch[0], rtol=0, atol=0)
    assert_close(indices, batch_indices[0], rtol=0, atol=0)


@pytest.mark.parametrize("plan", [p for p in KERNELS if p not in (COMPOSED, *WITHOUT_KERNELS)], ids=str)
def test_a_row_of_a_batch_is_the_image_alone(plan):
    """Bit for bit, where the products are our own: torch's depend on the batch."""
    x, weight, bias = inputs(N=7)
    with forced(plan):
        batch = conv_relu_maxpool(x, weight, bias, **BLOCK)
        for i in range(7):
            assert_close(conv_relu_maxpool(x[i : i + 1], weight, bias, **BLOCK)[0], batch[i], rtol=0, atol=0)


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("scale", [1e-40, 1e-20, 1e10, 1e18], ids=str)
def test_very_small_and_very_large_numbers(plan, scale):
    """Denormals are kept, and nothing overflows that eager does not."""
    x, weight, bias = inputs()
    weight = weight.abs() + 0.1  # no cancellation: relative errors mean something
    x, bias = x.abs() * scale, bias.abs() * scale
    with forced(plan):
        output = conv_relu_maxpool(x, weight, bias, **BLOCK)
    # A denormal's last bit is 1.4e-45; Winograd's transforms multiply a rounding by up to 400.
    last_bits = 1e-44 if plan.exact_products else 1e-42
    assert_close(output, eager(x, weight, bias, **BLOCK), rtol=1e-4, atol=scale * 1e-4 + last_bits)


def test_inference_mode_tensors():
    x, weight, bias = inputs()
    with torch.inference_mode():
        output = conv_relu_maxpool(x, weight, bias, **BLOCK)
    assert_close(output, eager(x, weight, bias, **BLOCK), **CLOSE)
    assert fastdl.explain("conv_relu_maxpool", x, weight, bias, **BLOCK).op == "conv_relu_maxpool"
