"""Dropout: one mask on every backend, in forward and backward, from a seed that torch.manual_seed decides."""

from __future__ import annotations

import math

import pytest
import torch
from linear_plans import KERNELS, PLANS, forced, name
from torch.testing import assert_close

from fastdl.ops import linear
from fastdl.ops.linear.activations import ACTIVATIONS, NAMES
from fastdl.ops.linear.reference import kept
from fastdl.testing.linear import SAMPLES

pytestmark = pytest.mark.isa


@pytest.mark.parametrize("activation", NAMES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=lambda d: str(d)[6:])
def test_the_mask_is_the_reference_s(activation, dtype):
    x, weight, bias = SAMPLES[8].inputs(dtype)
    seed, p, code = torch.tensor([-12345678901234567]), 0.3, ACTIVATIONS[activation]
    keep = kept((33, 47), seed, p)
    bias = bias + 30  # far from any zero of its own
    pre = torch.nn.functional.linear(x, weight, bias)
    outputs = [torch.ops.fastdl.linear_activation(pre, seed, code, p)]
    if dtype is not torch.float64:
        outputs.append(torch.ops.fastdl.linear(x, weight, bias, seed, code, p, False)[0])
    for output in outputs:
        assert torch.equal(output != 0, keep)


@pytest.mark.parametrize("plan", PLANS, ids=name)
def test_manual_seed_reproduces_it_and_every_call_draws_anew(plan):
    x, weight, bias = SAMPLES[8].inputs(torch.float32)
    with forced(plan):
        torch.manual_seed(3)
        first, second = (linear(x, weight, bias, activation="tanh", dropout_p=0.4) for _ in range(2))
        torch.manual_seed(3)
        again = linear(x, weight, bias, activation="tanh", dropout_p=0.4)
    assert torch.equal(first, again)
    assert not torch.equal(first == 0, second == 0)


@pytest.mark.parametrize("plan", KERNELS, ids=name)
def test_every_plan_draws_the_mask_of_the_reference(plan):
    x, weight, bias = SAMPLES[8].inputs(torch.float32)
    masks = []
    for each in (PLANS[0], plan):
        with forced(each):
            torch.manual_seed(9)
            masks.append(linear(x, weight, bias, activation="sigmoid", dropout_p=0.6) == 0)
    assert torch.equal(*masks)


@pytest.mark.parametrize("plan", PLANS, ids=name)
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_keep_rate_and_expectation(plan, p):
    x, weight = torch.ones(1000, 1), torch.ones(100, 1)
    with forced(plan):
        torch.manual_seed(1)
        output = linear(x, weight, dropout_p=p)
    deviation = math.sqrt(p * (1 - p) / output.numel())
    assert abs((output != 0).double().mean() - (1 - p)) < 5 * deviation
    assert_close(output[output != 0].unique(), torch.tensor([1 / (1 - p)]))


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_all_or_nothing(p):
    x, weight, _ = (t if t is None else t.requires_grad_() for t in SAMPLES[2].inputs(torch.float32))
    output = linear(x, weight, activation="gelu", dropout_p=p)
    assert (output == 0).all() == (p == 1)
    assert (torch.autograd.grad(output.sum(), x)[0] == 0).all() == (p == 1)


@pytest.mark.parametrize("plan", KERNELS, ids=name)
def test_a_dropped_nan_is_zero(plan):
    x, weight = torch.full((20, 1), torch.nan), torch.ones(20, 1)
    with forced(plan):
        output = linear(x, weight, activation="relu", dropout_p=0.5)
    assert (output.isnan() | (output == 0)).all()
    assert 0 < output.isnan().double().mean() < 1
