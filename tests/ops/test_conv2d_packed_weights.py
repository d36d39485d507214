"""Weights kept in oneDNN's layout: every change of a weight or scale is seen by the next call, memory is bounded."""

from __future__ import annotations

import gc
import threading

import numpy
import pytest
import torch
import torch.nn.functional as F
from conv_relu_maxpool_plans import Operators
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close

import fastdl
from fastdl import _extension
from fastdl.ops import conv2d
from fastdl.ops.conv2d import packed_weights
from fastdl.ops.conv2d.packed_weights import PackedWeights

if not _extension.cpu.loaded or not packed_weights.AVAILABLE:
    pytest.skip("no weights in oneDNN's layout here", allow_module_level=True)

CASES = {
    "small images": ({}, (3, 512, 4, 4), 1024, 1, torch.contiguous_format),
    "channels_last": (dict(padding=1, groups=8), (2, 32, 40, 40), 64, 3, torch.channels_last),
    "pointwise": ({}, (3, 64, 14, 14), 96, 1, torch.channels_last),
}


@pytest.fixture(params=CASES, autouse=True)
def case(request):
    """(x, weight, scale, residual, keyword arguments); the weight is kept when a test begins, nothing else."""
    packed_weights.packed_weights.clear()
    options, shape, C_out, K, memory_format = CASES[request.param]
    generator = torch.Generator().manual_seed(0)
    groups = options.get("groups", 1)
    x = torch.randn(shape, generator=generator).to(memory_format=memory_format)
    fan_in = shape[1] // groups * K * K
    weight = nn.Parameter(torch.randn(C_out, shape[1] // groups, K, K, generator=generator) * fan_in**-0.5)
    scale = torch.randn(C_out, generator=generator)
    residual = torch.randn(F.conv2d(x, weight, None, **options).shape, generator=generator)
    made = x, weight, scale, residual, options
    for _ in range(2):  # met once, it is not kept
        called(made)
    return made


def called(case, bias=None):
    x, weight, scale, residual, options = case
    with torch.no_grad():
        assert fastdl.explain("conv2d", x, weight, bias, **options).algorithm == "onednn"
        return conv2d(x, weight, bias, scale=scale, residual=residual, activation="relu", **options)


def expected(case):
    x, weight, scale, residual, options = case
    with torch.no_grad():
        return F.relu(F.conv2d(x, weight, None, **options) * scale[:, None, None] + residual)


def assert_seen(case, before):
    ours, truth = called(case), expected(case)
    assert (truth - before).abs().max() > 1e-2, "the change proves nothing"
    assert_close(ours, truth, rtol=1e-4, atol=1e-4)


def test_a_kept_weight_is_used_again(case, monkeypatch):
    made = []
    reorder = packed_weights._reorder
    monkeypatch.setattr(packed_weights, "_reorder", lambda *args: made.append(1) or reorder(*args))
    outputs = [called(case) for _ in range(3)]
    assert made == []
    assert all(torch.equal(outputs[0], each) for each in outputs)
    assert_close(outputs[0], expected(case), rtol=1e-4, atol=1e-4)


def test_a_fused_optimizer_step(case):
    before = called(case)
    weight = case[1]
    weight.grad = torch.ones_like(weight)
    torch.optim.AdamW([weight], lr=0.1, fused=True).step()
    assert_seen(case, before)


def test_one_element_of_data(case):
    weight = case[1]
    for element in (0, weight.numel() // 2, weight.numel() - 1):
        before = called(case)
        weight.data.view(-1)[element] += 3.0
        assert_seen(case, before)


def test_a_write_through_numpy(case):
    before = called(case)
    array = case[1].detach().numpy()
    numpy.multiply(array, -1, out=array)
    assert_seen(case, before)


def test_a_swap_of_two_elements(case):
    before = called(case)
    weight = case[1].detach().view(-1)
    weight[0], weight[1] = 2.0, -2.0
    assert_seen(case, before)
    before = called(case)
    weight[0], weight[1] = -2.0, 2.0
    assert_seen(case, before)


def test_a_changed_scale(case):
    before = called(case)
    case[2].add_(1)
    assert_seen(case, before)


def test_a_new_tensor_in_the_memory_of_the_old(case):
    x, weight, scale, residual, options = case
    before = called(case)
    memory = weight.detach()
    memory.mul_(-1)
    assert_seen((x, nn.Parameter(memory), scale, residual, options), before)


def test_the_memory_format_of_the_input_is_kept(case):
    x = case[0]
    output = called(case)
    assert output.is_contiguous() == x.is_contiguous()


def test_threads_share_what_is_kept(case):
    truth, wrong = expected(case), []

    def work() -> None:
        for _ in range(5):
            if not torch.allclose(called(case), truth, rtol=1e-4, atol=1e-4):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_weight_that_is_trained_is_not_kept(case):
    x, weight, _, _, options = case
    assert fastdl.explain("conv2d", x, weight, **options).algorithm != "onednn"


def test_what_is_in_use_stays_where_there_is_no_room(case, monkeypatch):
    """And what was not asked for in long goes."""
    x, weight, scale, _, options = case
    g = fastdl.ops.conv2d.__globals__["normalise"](
        x, weight, None, options.get("stride", 1), options.get("padding", 0), 1, options.get("groups", 1),
        *fastdl.ops.conv2d.__globals__["_NO_POOL"],
    )[0]  # fmt: skip
    monkeypatch.setattr(packed_weights, "MOST_BYTES", 3 * weight.nbytes)
    monkeypatch.setattr(packed_weights, "STALE_LOOKUPS", 20)
    kept = PackedWeights()
    weights = [nn.Parameter(weight.detach() + i) for i in range(5)]
    for _ in range(3):
        for each in weights:
            kept.of(each, scale, x, g)
    assert {key[0] for key in kept._kept} == {each.data_ptr() for each in weights[:3]}
    for _ in range(25):
        kept.of(weights[4], scale, x, g)
    assert weights[4].data_ptr() in {key[0] for key in kept._kept}
    assert kept._bytes == sum(each.nbytes for each in kept._kept.values()) <= packed_weights.MOST_BYTES


def test_what_is_kept_goes_with_the_parameter(case):
    x, weight, scale, residual, options = case
    other = nn.Parameter(weight.detach() + 1)
    for _ in range(2):
        called((x, other, scale, residual, options))
    kept = packed_weights.packed_weights
    assert kept._bytes == weight.nbytes + other.nbytes
    del other
    gc.collect()
    assert kept._bytes == weight.nbytes
    assert [key[0] for key in kept._kept] == [weight.data_ptr()]


@pytest.mark.isa
def test_fingerprints_of_structured_changes_differ():
    """Signs, swaps, shifts, single bits and lengths: what a weak hash takes for the same."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(70000, generator=generator)
    bits = base.view(torch.int32)
    changed = [base, *(base * factor for factor in (-1, 2, 0.5, 1.0000001))]
    changed += [torch.roll(base, step) for step in (1, 8, 16, 32, 4096)]
    changed += [(bits ^ (1 << bit)).view(torch.float32) for bit in range(31)]
    changed += [base[:count] for count in (1, 2, 31, 33, 65535, 65536, 69999)]
    for i in (0, 5, 1000, 65536, 69990):
        for step in (1, 8, 9):
            for change in (lambda pair: -pair, lambda pair: pair.flip(0)):
                t = base.clone()
                t[[i, i + step]] = change(t[[i, i + step]])
                changed.append(t)
    fingerprints = [torch.ops.fastdl.weight_fingerprint(t.contiguous()) for t in changed]
    assert len(set(fingerprints)) == len(changed)
    assert fingerprints == [torch.ops.fastdl.weight_fingerprint(t.clone()) for t in changed]


def test_images_of_many_sizes_are_not_packed_for(case):
    x, weight, scale, _, options = case
    kept = packed_weights.packed_weights
    before = kept._bytes
    for more in range(1, 4):
        larger = F.pad(x, (0, more)).contiguous(memory_format=torch.channels_last)
        residual = torch.ones(F.conv2d(larger, weight, None, **options).shape)
        each = larger, weight, scale, residual, options
        with torch.no_grad():
            output = conv2d(larger, weight, scale=scale, residual=residual, activation="relu", **options)
        assert_close(output, expected(each), rtol=1e-4, atol=1e-4)
    assert kept._bytes == before


def test_a_plan_knows_the_layouts_it_was_made_for():
    x = torch.randn(2, 64, 32, 32).contiguous(memory_format=torch.channels_last)
    large = torch.randn(128, 128, 1, 1)
    for weight in (large[:, :64].contiguous(), large[:, ::2], large[:, :64].contiguous()):
        parameter = nn.Parameter(weight, requires_grad=False)
        for _ in range(3):
            assert_close(conv2d(x, parameter), F.conv2d(x, parameter), rtol=1e-4, atol=1e-4)


def test_fake_tensors_and_a_switch_of_torch_are_obeyed(case):
    x, weight, scale, residual, options = case
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        images = mode.from_tensor(x), mode.from_tensor(residual)
        assert conv2d(images[0], weight, scale=scale, residual=images[1], **options).shape == residual.shape
    graph = make_fx(lambda x: conv2d(x, weight, scale=scale, **options))(x)
    assert not any("fingerprint" in str(node.target) for node in graph.graph.nodes)
    with torch.backends.mkldnn.flags(enabled=False), torch.no_grad(), Operators() as operators:
        called(case)
    assert not any("mkldnn" in operator for operator in operators.names)
