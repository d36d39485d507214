"""Backward: numerical gradients, second derivatives, what autograd can ask for, and what is kept for it."""

from __future__ import annotations

import itertools

import pytest
import torch
from linear_plans import COMPOSED, DOT, KERNELS, PLANS, REFERENCE, eager, forced, name
from torch.autograd import gradcheck, gradgradcheck
from torch.autograd.graph import saved_tensors_hooks
from torch.testing import assert_close

from fastdl.ops import linear
from fastdl.ops.linear.activations import BY_OUTPUT, NAMES
from fastdl.testing.linear import SAMPLES

pytestmark = pytest.mark.isa
SMALL = [s for s in SAMPLES if s.K * s.N < 5000]


@pytest.mark.parametrize("plan", [REFERENCE, COMPOSED], ids=name)
@pytest.mark.parametrize("sample", SMALL, ids=str)
@pytest.mark.parametrize("check", [gradcheck, gradgradcheck], ids=["first", "second"])
def test_numerical_gradients(plan, sample, check):
    """Against finite differences in float64, the mask held by the generator's state."""
    inputs = [t.requires_grad_() for t in sample.inputs(torch.float64) if t is not None]

    def call(*tensors):
        torch.manual_seed(11)
        return linear(*tensors, **sample.arguments)

    with forced(plan):
        assert check(call, inputs, fast_mode=True)


@pytest.mark.parametrize("plan", KERNELS, ids=name)
@pytest.mark.parametrize("activation", NAMES)
def test_second_derivative(plan, activation):
    results = []
    for call in (linear, eager):
        inputs = [t.requires_grad_() for t in SAMPLES[0].inputs(torch.float32)]
        with forced(plan):
            output = call(*inputs, activation=activation).square().sum()
            first = torch.autograd.grad(output, inputs, create_graph=True)
            results.append(torch.autograd.grad(sum(g.square().sum() for g in first), inputs))
    for ours, theirs in zip(*results, strict=True):
        assert (ours - theirs).norm() <= 1e-5 * theirs.norm()


@pytest.mark.parametrize("plan", PLANS, ids=name)
@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
def test_only_what_is_asked_for_is_computed(plan, activation):
    """Every subset of x, weight, bias that requires grad; the others stay without one."""
    everything = [t.requires_grad_() for t in SAMPLES[0].inputs(torch.float32)]
    with forced(plan):
        linear(*everything, activation=activation).square().sum().backward()
        for wanted in itertools.product([False, True], repeat=3):
            inputs = [t.detach().requires_grad_(w) for t, w in zip(everything, wanted, strict=True)]
            output = linear(*inputs, activation=activation)
            assert output.requires_grad == any(wanted)
            if any(wanted):
                output.square().sum().backward()
            for t, w, complete in zip(inputs, wanted, everything, strict=True):
                assert (t.grad is not None) == w
                if w:
                    assert_close(t.grad, complete.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("plan", [REFERENCE, COMPOSED], ids=name)
@pytest.mark.parametrize("activation", [None, "relu", "gelu_tanh"])
def test_a_transposed_weight_gets_its_gradient_in_its_layout(plan, activation):
    """So what it is a view of takes it without a copy."""
    x, weight, bias = (t.requires_grad_() for t in SAMPLES[0].inputs(torch.float32))
    stored = weight.detach().t().contiguous().requires_grad_()
    arrived = []
    with forced(plan):
        (expected,) = torch.autograd.grad(linear(x, weight, bias, activation=activation).sin().sum(), weight)
        view = stored.t()
        view.register_hook(arrived.append)
        linear(x, view, bias, activation=activation).sin().sum().backward()
    assert arrived[0].stride() == view.stride()
    assert_close(stored.grad.t(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("plan", KERNELS, ids=name)
@pytest.mark.parametrize("activation", NAMES)
@pytest.mark.parametrize("dropout_p", [0.0, 0.5])
def test_what_is_saved(plan, activation, dropout_p):
    """Besides the inputs: the output or what the activation was applied to, and the seed's eight bytes."""
    x, weight, bias = (t.requires_grad_() for t in SAMPLES[1].inputs(torch.float32))
    saved = []

    def keep(t):
        if t.data_ptr() not in {i.data_ptr() for i in (x, weight, bias)}:
            saved.append(t)
        return t

    with forced(plan), saved_tensors_hooks(keep, lambda t: t):
        output = linear(x, weight, bias, activation=activation, dropout_p=dropout_p)
    full = [t for t in saved if t.numel() > 1]
    assert len(full) == (activation is not None)
    if activation in BY_OUTPUT:
        assert full[0].data_ptr() == output.data_ptr()
    assert sum(t.nbytes for t in saved if t.numel() <= 1) == (8 if dropout_p else 0)


@pytest.mark.parametrize("plan", KERNELS, ids=name)
@pytest.mark.parametrize("kind", ["transposed", "expanded", "strided"])
def test_any_strides_of_grad_output(plan, kind):
    inputs = [t.requires_grad_() for t in SAMPLES[1].inputs(torch.float32)]
    with forced(plan):
        output = linear(*inputs, activation="silu")
        grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(5))
        strided = {
            "transposed": lambda: grad.t().contiguous().t(),
            "expanded": lambda: grad[:1].expand(output.shape),
            "strided": lambda: torch.stack([grad, grad], -1)[..., 0],
        }[kind]()
        expected = torch.autograd.grad(output, inputs, strided.contiguous(), retain_graph=True)
        gradients = torch.autograd.grad(output, inputs, strided)
    for ours, same in zip(gradients, expected, strict=True):
        assert_close(ours, same, rtol=0, atol=0)


@pytest.mark.parametrize("activation", NAMES)
def test_dot_and_composed_agree_on_nan_and_infinity(activation):
    """Forward and gradients, element for element with eager in float64: of float32 it leaves GELU to oneDNN on some
    CPUs, whose GELU of infinity is NaN."""
    x = torch.tensor([[0.0], [torch.nan], [torch.inf], [-torch.inf], [-0.0], [88.0], [-88.0], [1e-42]])
    weight, bias = torch.ones(3, 1), torch.zeros(3)
    results = []
    for plan, call in ((COMPOSED, linear), (DOT, linear), (REFERENCE, eager)):
        dtype = torch.float64 if call is eager else torch.float32
        t = x.to(dtype, copy=True).requires_grad_()
        with forced(plan):
            y = call(t, weight.to(dtype), bias.to(dtype), activation=activation)
            results.append((y.detach().float(), *torch.autograd.grad(y, t, torch.ones_like(y))))
    for ours in results[:2]:
        for a, b in zip(ours, results[2], strict=True):
            assert_close(a, b.float(), rtol=1e-5, atol=1e-6, equal_nan=True)
