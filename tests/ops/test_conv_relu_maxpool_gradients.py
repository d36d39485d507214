"""Backward: numerical gradients, second derivatives, every way autograd can ask, and what is kept for it."""

from __future__ import annotations

import itertools

import pytest
import torch
from conv_relu_maxpool_plans import COMPOSED, DIRECT, KERNELS, PLANS, REFERENCE, cases, eager, forced
from torch.autograd import gradcheck, gradgradcheck
from torch.autograd.graph import saved_tensors_hooks
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from fastdl.ops import conv_relu_maxpool
from fastdl.testing.conv_relu_maxpool import SAMPLES, Sample

pytestmark = pytest.mark.isa

BLOCK = dict(padding=1, pool_size=2)
# In a larger one some step of the finite differences crosses from one maximum to another.
SMALL = [s for s in SAMPLES if s.N * s.C * s.H * s.W * s.C_out < 50_000]
POOLS = [pytest.param(2, id="pool"), pytest.param(None, id="no pool")]


def leaves(sample=SAMPLES[2], dtype=torch.float32, seed=0, channels_last=False):
    x, weight, bias = sample.inputs(dtype, seed)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    return [t.requires_grad_() for t in (x, weight, bias)]


def relative(ours, theirs):
    return ((ours - theirs).norm() / theirs.norm()).item()


@pytest.mark.parametrize("plan", [p for p in PLANS if p in (REFERENCE, COMPOSED)], ids=str)
@pytest.mark.parametrize("sample", SMALL, ids=str)
@pytest.mark.parametrize("check", [gradcheck, gradgradcheck], ids=["first", "second"])
def test_numerical_gradients(plan, sample, check):
    """Against finite differences in float64, for random directions."""
    inputs = [t.requires_grad_() for t in sample.inputs(torch.float64) if t is not None]
    with forced(plan):
        assert check(lambda *t: conv_relu_maxpool(*t, **sample.kwargs), inputs, fast_mode=True)


@pytest.mark.slow
@pytest.mark.parametrize("sample", SAMPLES[:2] + SAMPLES[9:10], ids=str)
def test_numerical_gradients_element_by_element(sample):
    inputs = [t.requires_grad_() for t in sample.inputs(torch.float64)]
    with forced(COMPOSED):
        assert gradcheck(lambda *t: conv_relu_maxpool(*t, **sample.kwargs), inputs)


@pytest.mark.parametrize(("plan", "sample", "dtype"), cases(KERNELS, (torch.float32,)))
def test_second_derivative(plan, sample, dtype):
    """The fused backward's own backward: the reference's vector-Jacobian product."""
    results = []
    for call in (conv_relu_maxpool, eager):
        inputs = [t.requires_grad_() for t in sample.inputs(dtype) if t is not None]
        with forced(plan):
            first = torch.autograd.grad(
                call(*inputs, **sample.kwargs).square().sum(), inputs, create_graph=True
            )
            results.append(torch.autograd.grad(sum(g.square().sum() for g in first), inputs))
    for ours, theirs in zip(*results, strict=True):
        assert relative(ours, theirs) < 1e-4


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("pool_size", POOLS)
def test_only_what_is_asked_for_is_computed(plan, pool_size):
    """Every subset of x, weight, bias that requires grad; the others stay without one."""
    everything = leaves()
    with forced(plan):
        conv_relu_maxpool(*everything, padding=1, pool_size=pool_size).sum().backward()
        for wanted in itertools.product([False, True], repeat=3):
            inputs = [t.detach().requires_grad_(w) for t, w in zip(everything, wanted, strict=True)]
            output = conv_relu_maxpool(*inputs, padding=1, pool_size=pool_size)
            assert output.requires_grad == any(wanted)
            if any(wanted):
                output.sum().backward()
            for t, w, complete in zip(inputs, wanted, everything, strict=True):
                assert (t.grad is not None) == w
                if w:
                    # direct: grad_weight comes from another kernel where x needs a gradient too
                    tolerance = 1e-4 if plan == DIRECT else 1e-6
                    assert_close(t.grad, complete.grad, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("pool_size", POOLS)
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("kind", ["contiguous", "channels_last", "transposed", "offset", "expanded"])
def test_any_strides_of_grad_output(plan, pool_size, channels_last, kind):
    inputs = leaves(channels_last=channels_last)
    with forced(plan):
        output = conv_relu_maxpool(*inputs, padding=1, pool_size=pool_size)
        grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(5))
        if kind == "expanded":
            grad = grad[:1, :, :1, :1].expand(output.shape)
        expected = torch.autograd.grad(output, inputs, grad.contiguous(), retain_graph=True)
        strided = {
            "contiguous": lambda: grad,
            "channels_last": lambda: grad.to(memory_format=torch.channels_last),
            "transposed": lambda: grad.transpose(2, 3).contiguous().transpose(2, 3),
            "offset": lambda: torch.cat([grad.new_full((1,), torch.nan), grad.flatten()])[1:].view(
                grad.shape
            ),
            "expanded": lambda: grad,
        }[kind]()
        gradients = torch.autograd.grad(output, inputs, strided)
    for ours, same in zip(gradients, expected, strict=True):
        assert_close(ours, same, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_gradients_accumulate_and_the_graph_can_be_kept(plan):
    inputs = leaves()
    with forced(plan):
        output = conv_relu_maxpool(*inputs, **BLOCK)
        output.sum().backward(retain_graph=True)
        once = [t.grad.clone() for t in inputs]
        output.sum().backward()
        for t, first in zip(inputs, once, strict=True):
            assert_close(t.grad, 2 * first, rtol=0, atol=0)
        with pytest.raises(RuntimeError, match="second time"):
            output.sum().backward()


@pytest.mark.parametrize("plan", KERNELS, ids=str)
def test_inputs_changed_between_forward_and_backward_are_noticed(plan):
    for changed in range(2):
        inputs = leaves()
        with forced(plan):
            output = conv_relu_maxpool(*inputs, **BLOCK)
        with torch.no_grad():
            inputs[changed].add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            output.sum().backward()


@pytest.mark.parametrize("plan", KERNELS, ids=str)
def test_an_output_changed_in_place_is_noticed_where_it_is_saved(plan):
    with forced(plan):
        output = conv_relu_maxpool(*leaves(), padding=1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            output.mul_(2).sum().backward()
        inputs = leaves()
        conv_relu_maxpool(*inputs, **BLOCK).mul_(2).sum().backward()  # with a pool only the record is saved
    assert inputs[1].grad.count_nonzero() > 0


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_indices_carry_no_gradient(plan):
    inputs = leaves()
    with forced(plan):
        output, indices = conv_relu_maxpool(*inputs, **BLOCK, return_indices=True)
    assert output.requires_grad
    assert not indices.requires_grad
    assert indices.dtype == torch.int64


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_indices_point_at_the_output(plan):
    """Into the flattened plane of conv + ReLU, as max_pool2d's and as nn.MaxUnpool2d wants them."""
    inputs = [t.detach() for t in leaves()]
    with forced(plan):
        output, indices = conv_relu_maxpool(*inputs, **BLOCK, return_indices=True)
        plane = conv_relu_maxpool(*inputs, padding=1)
    assert_close(plane.flatten(2).gather(2, indices.flatten(2)).view_as(output), output, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_activation_checkpointing(plan):
    results = []
    for keep in (True, False):
        inputs = leaves()
        with forced(plan):
            call = lambda *t: conv_relu_maxpool(*t, **BLOCK)  # noqa: E731
            output = call(*inputs) if keep else checkpoint(call, *inputs, use_reentrant=False)
            output.square().sum().backward()
        results.append([output, *(t.grad for t in inputs)])
    for kept, recomputed in zip(*results, strict=True):
        assert_close(kept, recomputed, rtol=0, atol=0)


@pytest.mark.parametrize("plan", KERNELS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_one_byte_is_saved_for_each_pooled_element(plan, dtype):
    """And nothing at the convolution's resolution: eager saves 24 bytes in float32."""
    plan.skip_unless_it_takes(dtype)
    inputs = leaves(dtype=dtype)
    saved = []
    with forced(plan), saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        output = conv_relu_maxpool(*inputs, **BLOCK)
    own = {t.data_ptr() for t in inputs}
    kept = [t for t in saved if t.data_ptr() not in own]
    assert [t.dtype for t in kept] == [torch.uint8]
    assert kept[0].untyped_storage().nbytes() == output.numel()


@pytest.mark.parametrize("plan", KERNELS, ids=str)
def test_without_a_pool_the_output_itself_is_what_is_saved(plan):
    inputs = leaves()
    saved = []
    with forced(plan), saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        output = conv_relu_maxpool(*inputs, padding=1)
    own = {t.data_ptr() for t in (*inputs, output)}
    assert [t for t in saved if t.data_ptr() not in own] == []


@pytest.mark.parametrize("plan", KERNELS, ids=str)
def test_nothing_is_saved_or_recorded_without_gradients(plan):
    inputs = leaves()
    with forced(plan), torch.no_grad():
        assert conv_relu_maxpool(*inputs, **BLOCK).grad_fn is None
    with forced(plan):
        assert conv_relu_maxpool(*(t.detach() for t in inputs), **BLOCK).grad_fn is None


@pytest.mark.parametrize("plan", KERNELS, ids=str)
def test_the_gradient_of_x_keeps_its_memory_format(plan):
    for channels_last in (False, True):
        inputs = leaves(channels_last=channels_last)
        with forced(plan):
            output = conv_relu_maxpool(*inputs, **BLOCK)
            (gradient,) = torch.autograd.grad(output.sum(), inputs[0])
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        assert output.is_contiguous(memory_format=memory_format)
        assert gradient.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_training_reaches_the_same_loss_as_eager(plan):
    """Twenty steps of a small network: wrong gradients that look right do not survive."""
    losses = []
    for call in (conv_relu_maxpool, eager):
        generator = torch.Generator().manual_seed(3)
        x = torch.randn(32, 3, 12, 12, generator=generator)
        target = torch.randint(0, 4, (32,), generator=generator)
        parameters = [
            (torch.randn(shape, generator=generator) * 0.2).requires_grad_()
            for shape in ((8, 3, 3, 3), (8,), (16, 8, 3, 3), (16,), (4, 144))
        ]
        optimizer = torch.optim.SGD(parameters, lr=0.05)
        with forced(plan):
            for _ in range(20):
                y = call(call(x, *parameters[:2], **BLOCK), *parameters[2:4], **BLOCK).flatten(1)
                loss = torch.nn.functional.cross_entropy(y @ parameters[4].T, target)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert losses[0] < 1.0


@pytest.mark.parametrize("plan", KERNELS, ids=str)
def test_only_the_bias(plan):
    sample = Sample(2, 8, 9, 9, 8, kwargs=BLOCK)
    x, weight, bias = sample.inputs(torch.float32)
    results = []
    for call in (conv_relu_maxpool, eager):
        leaf = bias.clone().requires_grad_()
        with forced(plan):
            results.append(torch.autograd.grad(call(x, weight, leaf, **BLOCK).sum(), leaf)[0])
    assert_close(*results, rtol=1e-6, atol=1e-6)
