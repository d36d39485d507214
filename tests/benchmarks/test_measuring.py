"""What the runner measures with: timer, memory, and where a gradient is decided."""

import time

import pytest
import torch
import torch.nn.functional as F

from benchmarks import memory
from benchmarks.ops import bench_conv_relu_maxpool as conv
from fastdl.testing.conv_relu_maxpool import Sample
from fastdl.testing.timer import host_turn, interleaved, samples


def test_every_call_takes_its_turn():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    times = samples(calls, rounds=3, least_seconds=0.0, settle_seconds=0.0)
    assert {name: len(values) for name, values in times.items()} == {"a": 3, "b": 3, "c": 3}
    # one untimed and one timed call a turn, the order reversed in every other round
    assert "".join(order[-18:]) == "aabbcc" + "ccbbaa" + "aabbcc"


def test_a_budget_ends_the_rounds():
    times = samples({"a": lambda: None}, rounds=50, least_rounds=4, budget_seconds=0.0, least_seconds=0.0)
    assert len(times["a"]) == 4


def test_a_call_longer_than_the_budget_is_timed_once():
    times = samples({"a": lambda: None, "b": lambda: time.sleep(0.02)}, rounds=3, budget_seconds=0.01)
    assert len(times["b"]) == 1
    assert times["b"][0] >= 0.02
    assert len(times["a"]) == 3


def test_interleaved_returns_medians():
    assert 0 < interleaved({"a": lambda: None}, rounds=3, least_seconds=1e-5, settle_seconds=0.0)["a"] < 1e-2


def test_the_first_call_of_a_turn_is_not_timed():
    calls = []
    host_turn(lambda: calls.append(0), 5)
    assert len(calls) == 6


def test_saved_bytes_counts_each_storage_once_and_no_input():
    x = torch.ones(1000, requires_grad=True)
    assert memory.saved_bytes(lambda: x * x, (x,)) == 0
    # exp and sqrt save their outputs; y * y saves y, which is one of them
    assert memory.saved_bytes(lambda: torch.square(x.exp()), (x,)) == 4000


def test_eager_saves_24_bytes_for_each_pooled_element():
    sample = Sample(2, 8, 12, 12, 8, kwargs=dict(padding=1, pool_size=2))
    case = conv.ConvCase.of("training", sample, training=True)
    eager = next(p for p in case.workload("cpu").providers if str(p) == "eager NCHW").prepare()
    assert eager.saved_bytes / case.saved_per == 24


def test_peak_bytes_sees_what_a_call_allocates():
    if not memory.reset_peak():
        pytest.skip("only Linux resets a process's high-water mark")
    peak = memory.peak_bytes(lambda: torch.ones(64 << 20, dtype=torch.uint8), "cpu")
    assert 63 << 20 < peak < 80 << 20
    assert memory.peak_bytes(lambda: None, "cpu") < 1 << 20


@pytest.mark.parametrize(
    "kwargs",
    [
        dict(pool_size=2),
        dict(pool_size=3, pool_stride=2, pool_padding=1),
        dict(pool_size=2, ceil_mode=True),
        dict(pool_size=(2, 3), pool_stride=1, pool_dilation=2),
        dict(),
    ],
)
def test_a_decided_gradient_survives_rounding(kwargs):
    sample = Sample(2, 3, 13, 11, 4, kwargs=kwargs)
    x, weight, bias = (t.double() for t in sample.inputs(torch.float32))
    g, _ = conv._geometry(sample)
    exact = F.conv2d(x, weight, bias)
    margin = 0.1
    noise = (torch.rand(exact.shape, generator=torch.Generator().manual_seed(3)).double() - 0.5) * margin

    def grad_conv(y, grad_output):
        y = y.clone().requires_grad_()
        output = conv._pool(F.relu(y), g)
        return torch.autograd.grad(output, y, grad_output.expand_as(output))[0]

    output_size = conv._pool(exact, g).shape
    mask = conv.decided(exact, tuple(output_size[2:]), g, margin).double()
    assert mask.shape == output_size
    assert 0.4 < mask.mean() < 1
    assert torch.equal(grad_conv(exact, mask), grad_conv(exact + noise, mask))
    # the margin matters: without the mask, rounding of this size sends some gradients elsewhere
    assert not torch.equal(grad_conv(exact, mask * 0 + 1), grad_conv(exact + noise, mask * 0 + 1))
