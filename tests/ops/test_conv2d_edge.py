"""Values and shapes at the edge: NaN and infinity, odd scales and residuals, empty and single images, paddings."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from conv2d_plans import (
    COMPOSED,
    KERNELS,
    ONEDNN,
    PLANS,
    REFERENCE,
    WINOGRAD,
    call,
    eager,
    forced,
    name,
    skip_unless_it_serves,
    tensors_of,
)
from torch.testing import assert_close

from fastdl.ops import conv2d
from fastdl.testing.conv2d import ALL, SAME, Sample

pytestmark = pytest.mark.isa

CLOSE = dict(rtol=1e-4, atol=1e-4)
SAMPLE = Sample(2, 16, 13, 11, 19, kwargs=SAME, scale=True, residual=True)
RELU = Sample(2, 16, 13, 11, 19, kwargs=SAME, **ALL)
LAST = Sample(2, 16, 13, 11, 19, kwargs=SAME, channels_last=True, **ALL)
PARTS = ("x", "weight", "bias", "scale", "residual")


@pytest.mark.parametrize("plan", KERNELS, ids=name)
@pytest.mark.parametrize("sample", [SAMPLE, RELU, LAST], ids=str)
@pytest.mark.parametrize("part", range(5), ids=PARTS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
def test_not_finite_values_go_where_eager_takes_them(plan, sample, part, value):
    tensors = tensors_of(sample)
    # of weight [C_out, C, 3, 3], of images [N, C, H, W], of [C_out]
    tensors[part][(1, 3, 1, 1)[: tensors[part].dim()]] = value
    with forced(plan):
        output = call(conv2d, sample, tensors)
    expected = call(eager, sample, tensors)
    spoiled = ~call(eager, dataclasses.replace(sample, activation=None), tensors).isfinite()
    assert spoiled.any()
    assert not spoiled.all()
    assert_close(output, expected, equal_nan=True, **CLOSE)


@pytest.mark.parametrize("plan", PLANS, ids=name)
@pytest.mark.parametrize("scale", [0.0, -0.0, -3.0, 1e-30, 1e30], ids=str)
def test_scales(plan, scale):
    x, weight, bias, scales, residual = tensors_of(RELU)
    scales[3:9] = scale
    with forced(plan):
        output = call(conv2d, RELU, (x, weight, bias, scales, residual))
    expected = call(eager, RELU, (x, weight, bias, scales, residual))
    assert_close(output, expected, rtol=1e-4, atol=1e-4 * max(1, scale))


def residuals(shape):
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    N, C, H, W = shape
    large = torch.full((N, C, H + 2, W + 3), torch.nan)
    large[:, :, 1:-1, 2:-1] = drawn
    return {
        "contiguous": drawn,
        "channels_last": drawn.to(memory_format=torch.channels_last),
        "transposed": drawn.transpose(2, 3).contiguous().transpose(2, 3),
        "cropped": large[:, :, 1:-1, 2:-1],
        "one value": drawn[:1, :1, :1, :1].expand(shape),
        "one a channel": drawn[:1, :, :1, :1].expand(shape),
        "overlapping": drawn.flatten().as_strided(shape, (5, 3, 2, 1)),
        "flipped": drawn.flip(0),
    }


@pytest.mark.parametrize("plan", PLANS, ids=name)
@pytest.mark.parametrize("layout", residuals((1, 1, 1, 1)))
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("C_out", [1, 19])
def test_a_residual_of_any_strides(plan, layout, channels_last, C_out):
    sample = Sample(2, 16, 13, 11, C_out, kwargs=SAME, channels_last=channels_last, **ALL)
    skip_unless_it_serves(plan, sample)
    x, weight, bias, scale, _ = tensors_of(sample)
    residual = residuals((2, C_out, 13, 11))[layout]
    before = residual.clone()
    with forced(plan):
        output = call(conv2d, sample, (x, weight, bias, scale, residual))
    assert_close(output, call(eager, sample, (x, weight, bias, scale, residual)), **CLOSE)
    assert torch.equal(residual, before), "the residual was written to"
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    assert output.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("plan", PLANS, ids=name)
@pytest.mark.parametrize("recorded", [False, True])
def test_the_residual_may_be_the_input_itself(plan, recorded):
    results = []
    for op in (conv2d, eager):
        x, weight, bias, scale, _ = (
            None if t is None else t.requires_grad_(recorded)
            for t in tensors_of(Sample(2, 16, 9, 10, 16, scale=True, kwargs=SAME))
        )
        with forced(plan):
            output = op(x, weight, bias, scale=scale, residual=x, activation="relu", padding=1)
        results.append([output])
        if recorded:
            results[-1] += torch.autograd.grad(output.square().sum(), (x, weight, bias, scale))
    for ours, theirs in zip(*results, strict=True):
        assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("plan", PLANS, ids=name)
def test_an_empty_batch(plan):
    tensors = [t.requires_grad_() for t in tensors_of(Sample(0, 16, 8, 8, 16, kwargs=SAME, **ALL))]
    with forced(plan):
        with torch.no_grad():
            assert call(conv2d, RELU, tensors).shape == (0, 16, 8, 8)
        output = call(conv2d, RELU, tensors)
        gradients = torch.autograd.grad(output.sum(), tensors)
    for gradient, t in zip(gradients, tensors, strict=True):
        assert gradient.shape == t.shape
        assert gradient.count_nonzero() == 0


@pytest.mark.parametrize("plan", PLANS, ids=name)
def test_one_image_without_a_batch(plan):
    x, weight, bias, scale, residual = tensors_of(RELU)
    with forced(plan):
        one = call(conv2d, RELU, (x[1], weight, bias, scale, residual[1]))
        batch = call(conv2d, RELU, (x[1:], weight, bias, scale, residual[1:]))
    assert_close(one, batch[0], rtol=0, atol=0)


@pytest.mark.parametrize("plan", PLANS, ids=name)
@pytest.mark.parametrize(
    ("K", "padding"), [((3, 3), "same"), ((3, 3), "valid"), ((2, 4), "same"), ((4, 3), "same")]
)
def test_padding_by_name(plan, K, padding):
    if plan == WINOGRAD and K != (3, 3):
        pytest.skip("only 3x3")
    x, weight, bias = Sample(2, 8, 9, 10, 12, K=K).inputs(torch.float32)
    residual = torch.randn(2, 12, 9, 10) if padding == "same" else None
    with forced(plan):
        output = conv2d(x, weight, bias, padding=padding, residual=residual)
    assert_close(output, eager(x, weight, bias, padding=padding, residual=residual), **CLOSE)


@pytest.mark.parametrize("plan", KERNELS, ids=name)
def test_strides_of_the_other_inputs(plan):
    """Views with NaN between their elements, and a weight in channels_last."""
    if plan == ONEDNN:
        pytest.skip("a weight with gaps is not kept")
    tensors = tensors_of(RELU)

    def spread(t):
        storage = t.new_full(tuple(2 * n + 1 for n in t.shape), torch.nan)
        return storage[tuple(slice(1, None, 2) for _ in t.shape)].copy_(t)

    views = [spread(t) for t in tensors]
    last = [tensors[0], tensors[1].to(memory_format=torch.channels_last), *tensors[2:]]
    with forced(plan):
        dense = call(conv2d, RELU, tensors)
        for others in (views, last):
            assert_close(
                call(conv2d, RELU, others), dense, **(CLOSE if plan == COMPOSED else dict(rtol=0, atol=0))
            )


def test_inference_mode_and_a_copied_module():
    class Block(torch.nn.Conv2d):
        def forward(self, x):
            return conv2d(x, self.weight, self.bias, padding=1, residual=x, activation="relu")

    block, x = Block(16, 16, 3).eval(), torch.randn(2, 16, 12, 12)
    with torch.inference_mode():
        expected = eager(x, block.weight, block.bias, padding=1, residual=x, activation="relu")
        assert_close(block(x), expected, **CLOSE)
        copied = copy.deepcopy(block)
        copied.weight.neg_()
        opposite = eager(x, copied.weight, copied.bias, padding=1, residual=x, activation="relu")
        for _ in range(2):
            assert_close(copied(x), opposite, **CLOSE)
            assert_close(block(x), expected, **CLOSE)


@pytest.mark.parametrize("change", ["data", "one element", "numpy"])
def test_a_changed_weight_is_noticed(change):
    """Nothing made of the old one is used, however it was written."""
    x, weight, bias, scale, residual = tensors = tensors_of(RELU)
    with forced(WINOGRAD):
        for _ in range(3):
            before = call(conv2d, RELU, tensors)
        if change == "data":
            weight.data.mul_(-1)
        elif change == "one element":
            weight.data.view(-1)[-1] += 3
        else:
            weight.numpy()[...] *= 2
        after = call(conv2d, RELU, tensors)
    assert (after - before).abs().max() > 1e-2
    assert_close(after, call(eager, RELU, tensors), **CLOSE)


@pytest.mark.parametrize("plan", [p for p in PLANS if p != REFERENCE], ids=name)
def test_threads_and_repeats_give_the_same_bits(plan, threads):
    results = []
    with forced(plan):
        for count in (1, 2, 4, 4):
            threads(count)
            tensors = [t.requires_grad_() for t in tensors_of(LAST)]
            with torch.no_grad():
                inference = call(conv2d, LAST, tensors)
            output = call(conv2d, LAST, tensors)
            results.append([inference, output, *torch.autograd.grad(output.square().sum(), tensors)])
    for other in results[1 if plan == WINOGRAD else 3 :]:
        for ours, first in zip(other, results[0 if plan == WINOGRAD else 2], strict=True):
            assert torch.equal(ours, first)
