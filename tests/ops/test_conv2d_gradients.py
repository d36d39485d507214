"""Backward: numerical gradients, second derivatives, every way autograd can ask, and what is kept for it."""

from __future__ import annotations

import itertools

import pytest
import torch
from conv2d_plans import (
    COMPOSED,
    DEPTHWISE,
    KERNELS,
    PLANS,
    PRODUCT,
    REFERENCE,
    WINOGRAD,
    call,
    cases,
    eager,
    forced,
    name,
    tensors_of,
)
from torch.autograd import gradcheck, gradgradcheck
from torch.autograd.graph import saved_tensors_hooks
from torch.testing import assert_close

from fastdl.ops import conv2d
from fastdl.testing.conv2d import ALL, SAME, SAMPLES, Sample

pytestmark = pytest.mark.isa

BLOCK = SAMPLES[1]
PLAIN = SAMPLES[0]
EPILOGUES = [
    Sample(2, 16, 9, 10, 12, kwargs=SAME, scale=scale, residual=residual, activation=activation)
    for scale, residual, activation in itertools.product([False, True], [False, True], [None, "relu", "silu"])
]


def leaves(sample, dtype=torch.float32):
    return [None if t is None else t.requires_grad_() for t in tensors_of(sample, dtype)]


def present(tensors):
    return [t for t in tensors if t is not None]


def relative(ours, theirs):
    return ((ours - theirs).norm() / theirs.norm()).item()


@pytest.mark.parametrize("plan", [REFERENCE, COMPOSED], ids=name)
@pytest.mark.parametrize("sample", [s for s in SAMPLES if s.C * s.H * s.W < 3000], ids=str)
@pytest.mark.parametrize("check", [gradcheck, gradgradcheck], ids=["first", "second"])
def test_numerical_gradients(plan, sample, check):
    """Against finite differences in float64, for random directions."""
    tensors = leaves(sample, torch.float64)

    def of_present(*given):
        rest = iter(given)
        return call(conv2d, sample, [None if t is None else next(rest) for t in tensors])

    with forced(plan):
        assert check(of_present, present(tensors), fast_mode=True)


@pytest.mark.parametrize(
    ("plan", "sample", "dtype"),
    cases((*KERNELS, DEPTHWISE, PRODUCT), (torch.float32,), (*SAMPLES, *EPILOGUES)),
)
def test_second_derivative(plan, sample, dtype):
    results = []
    for op in (conv2d, eager):
        tensors = leaves(sample)
        wanted = present(tensors)
        with forced(plan):
            first = torch.autograd.grad(call(op, sample, tensors).pow(3).sum(), wanted, create_graph=True)
            results.append([*first, *torch.autograd.grad(sum(g.square().sum() for g in first), wanted)])
    for ours, theirs in zip(*results, strict=True):
        assert relative(ours, theirs) < 1e-4


@pytest.mark.parametrize("plan", PLANS, ids=name)
@pytest.mark.parametrize("sample", [BLOCK, SAMPLES[3]], ids=str)
def test_only_what_is_asked_for_is_computed(plan, sample):
    """Every subset of the tensors that requires grad; the others stay without one."""
    everything = leaves(sample)
    with forced(plan):
        call(conv2d, sample, everything).sum().backward()
        for wanted in itertools.product([False, True], repeat=5):
            if any(w and t is None for w, t in zip(wanted, everything, strict=True)):
                continue
            tensors = [
                None if t is None else t.detach().requires_grad_(w)
                for t, w in zip(everything, wanted, strict=True)
            ]
            output = call(conv2d, sample, tensors)
            assert output.requires_grad == any(wanted)
            if any(wanted):
                output.sum().backward()
            for t, w, complete in zip(tensors, wanted, everything, strict=True):
                if t is not None:
                    assert (t.grad is not None) == w
                if w:
                    assert_close(t.grad, complete.grad, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("plan", PLANS, ids=name)
@pytest.mark.parametrize("sample", [PLAIN, BLOCK], ids=str)
@pytest.mark.parametrize("kind", ["channels_last", "transposed", "offset", "expanded"])
def test_any_strides_of_grad_output(plan, sample, kind):
    tensors = leaves(sample)
    wanted = present(tensors)
    with forced(plan):
        output = call(conv2d, sample, tensors)
        grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(5))
        if kind == "expanded":
            grad = grad[:1, :, :1, :1].expand(output.shape)
        expected = torch.autograd.grad(output, wanted, grad.contiguous(), retain_graph=True)
        strided = {
            "channels_last": lambda: grad.to(memory_format=torch.channels_last),
            "transposed": lambda: grad.transpose(2, 3).contiguous().transpose(2, 3),
            "offset": lambda: torch.cat([torch.full((1,), torch.nan), grad.flatten()])[1:].view(grad.shape),
            "expanded": lambda: grad,
        }[kind]()
        gradients = torch.autograd.grad(output, wanted, strided)
    for ours, same in zip(gradients, expected, strict=True):
        assert_close(ours, same, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("plan", KERNELS, ids=name)
@pytest.mark.parametrize("changed", [0, 1], ids=["x", "weight"])
def test_inputs_changed_between_forward_and_backward_are_noticed(plan, changed):
    tensors = leaves(PLAIN)
    with forced(plan):
        output = call(conv2d, PLAIN, tensors)
    with torch.no_grad():
        tensors[changed].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@pytest.mark.parametrize("plan", KERNELS, ids=name)
@pytest.mark.parametrize("activation", [None, "relu"])
def test_nothing_is_saved_beyond_the_input_the_weight_and_a_relus_output(plan, activation):
    sample = Sample(2, 16, 12, 12, 16, kwargs=SAME, residual=True, activation=activation)
    tensors, saved = leaves(sample), []
    with forced(plan), saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        output = call(conv2d, sample, tensors)
    own = {tensors[0].data_ptr(), tensors[1].data_ptr(), *([output.data_ptr()] if activation else [])}
    assert {t.data_ptr() for t in saved} == own


def test_a_scale_is_folded_into_the_weight_that_is_saved():
    tensors, saved = leaves(BLOCK), []
    with forced(WINOGRAD), saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        output = call(conv2d, BLOCK, tensors)
    own = {t.data_ptr() for t in (*tensors, output)}
    assert {t.shape for t in saved if t.data_ptr() not in own} <= {tensors[1].shape, (16, 1, 1, 1)}


@pytest.mark.parametrize("plan", KERNELS, ids=name)
def test_nothing_is_recorded_without_gradients(plan):
    tensors = leaves(BLOCK)
    with forced(plan):
        with torch.no_grad():
            assert call(conv2d, BLOCK, tensors).grad_fn is None
        assert call(conv2d, BLOCK, [t.detach() for t in tensors]).grad_fn is None


@pytest.mark.parametrize("plan", KERNELS, ids=name)
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
def test_the_gradients_of_images_keep_their_memory_format(plan, channels_last):
    sample = Sample(2, 16, 9, 10, 12, kwargs=SAME, channels_last=channels_last, **ALL)
    tensors = leaves(sample)
    with forced(plan):
        output = call(conv2d, sample, tensors)
        of_x, of_residual = torch.autograd.grad(output.square().sum(), (tensors[0], tensors[4]))
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    for t in (output, of_x, of_residual):
        assert t.is_contiguous(memory_format=memory_format)
