"""The kernel for channels that are convolved by themselves: odd inputs, strides, values and threads, against eager."""

from __future__ import annotations

import pytest
import torch
from conv2d_plans import DEPTHWISE, call, eager, forced, tensors_of
from torch.testing import assert_close

from fastdl.ops import conv2d
from fastdl.testing.conv2d import ALL, Sample

pytestmark = pytest.mark.isa
CLOSE = dict(rtol=1e-5, atol=1e-5)
SAMPLE = Sample(2, 19, 13, 11, 19, kwargs=dict(groups=19, padding=1), **ALL)


def ours(sample: Sample, tensors) -> torch.Tensor:
    with forced(DEPTHWISE), torch.no_grad():
        return call(conv2d, sample, tensors)


@pytest.mark.parametrize("H", [1, 2, 3, 4, 5, 6, 9, 15])
@pytest.mark.parametrize("W", [1, 3, 7, 8, 9, 16, 17, 33])
@pytest.mark.parametrize("K", [(3, 3), (5, 5), (1, 3), (4, 2)], ids=str)
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_every_size(H, W, K, stride):
    how = dict(groups=3, padding=(K[0] // 2, K[1] // 2), stride=stride)
    sample = Sample(2, 3, H, W, 6, K=K, kwargs=how, **ALL)
    tensors = tensors_of(sample)
    assert_close(ours(sample, tensors), call(eager, sample, tensors), **CLOSE)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
@pytest.mark.parametrize("where", ["x", "bias", "scale", "residual"])
def test_not_finite_values_go_where_eager_takes_them(value, where):
    tensors = tensors_of(SAMPLE)
    changed = tensors[("x", "weight", "bias", "scale", "residual").index(where)]
    changed.view(-1)[::37] = value
    assert_close(ours(SAMPLE, tensors), call(eager, SAMPLE, tensors), equal_nan=True, **CLOSE)


def test_memory_of_any_layout():
    """Views with NaN between their elements, channels_last, one image without a batch, none at all."""
    tensors = tensors_of(SAMPLE)
    expected = ours(SAMPLE, tensors)

    def spread(t):
        storage = t.new_full(tuple(2 * n + 1 for n in t.shape), torch.nan)
        return storage[tuple(slice(1, None, 2) for _ in t.shape)].copy_(t)

    last = [t.to(memory_format=torch.channels_last) if t.dim() == 4 else t for t in tensors]
    for others in ([spread(t) for t in tensors], last):
        assert_close(ours(SAMPLE, others), expected, rtol=0, atol=0)
    x, weight, bias, scale, residual = tensors
    assert_close(ours(SAMPLE, (x[1], weight, bias, scale, residual[1])), expected[1], rtol=0, atol=0)
    assert ours(SAMPLE, (x[:0], weight, bias, scale, residual[:0])).shape == (0, 19, 13, 11)


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_padding_by_name(padding):
    sample = Sample(2, 5, 9, 10, 5, K=(3, 4), kwargs=dict(groups=5))
    x, weight, bias, *_ = tensors_of(sample)
    with forced(DEPTHWISE), torch.no_grad():
        output = conv2d(x, weight, bias, padding=padding, groups=5)
    assert_close(output, eager(x, weight, bias, padding=padding, groups=5), **CLOSE)


def test_threads_change_nothing():
    sample = Sample(2, 70, 40, 40, 70, kwargs=dict(groups=70, padding=1), **ALL)
    tensors, before = tensors_of(sample), torch.get_num_threads()
    outputs = []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            outputs.append(ours(sample, tensors))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(output, outputs[0]) for output in outputs)
