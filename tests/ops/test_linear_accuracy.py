"""The error rule for every plan, sample and dtype; exact equality on small integers; proof of who computed."""

from __future__ import annotations

import pytest
import torch
from linear_plans import COMPOSED, DTYPES, KERNELS, PLANS, cases, forced, name
from torch.profiler import ProfilerActivity, profile
from torch.testing import assert_close

import fastdl
from fastdl import _extension
from fastdl.ops.linear.backends import make_plan
from fastdl.testing.linear import NAMES, SAMPLES, Sample, reports, run_plan

pytestmark = pytest.mark.isa
needs_kernels = pytest.mark.skipif(
    not _extension.cpu.loaded, reason=f"CPU kernels are not loaded: {_extension.cpu.error}"
)
LINEAR_IN_INTEGERS = (None, "relu")


@needs_kernels
@pytest.mark.parametrize(("plan", "sample", "dtype"), cases(KERNELS, DTYPES[1:]))
def test_error_rule(plan, sample, dtype):
    for quantity, report in reports(
        sample, make_plan(plan, sample.activation, sample.dropout_p), dtype
    ).items():
        assert report.within_rule, f"{quantity}: {report}"


@needs_kernels
@pytest.mark.parametrize(("plan", "sample", "dtype"), cases((COMPOSED,), DTYPES[:1]))
def test_float64_is_of_reference_quality(plan, sample, dtype):
    for quantity, report in reports(
        sample, make_plan(plan, sample.activation, sample.dropout_p), dtype
    ).items():
        assert report.relative_l2 < 1e-15, f"{quantity}: {report}"


INTEGERS = tuple(
    Sample(s.rows, s.K, s.N, activation, s.dropout_p and 0.5, s.bias)
    for s in SAMPLES
    for activation in LINEAR_IN_INTEGERS
)


@needs_kernels
@pytest.mark.parametrize(("plan", "sample", "dtype"), cases(KERNELS, DTYPES, INTEGERS))
def test_small_integers_are_exact(plan, sample, dtype):
    """Sums of small integers are exact in every dtype, so any wrong index shows, however small its effect."""
    run = run_plan(sample, make_plan(plan, sample.activation, sample.dropout_p), dtype, 3, integers=True)
    for quantity, value, truth in zip(NAMES, run.values, run.truths, strict=True):
        if value is not None:
            assert truth.abs().max() < 256, "the sample is not exact in bfloat16"
            assert_close(value, truth.to(dtype), rtol=0, atol=0, msg=quantity)


@pytest.mark.parametrize("plan", PLANS, ids=name)
def test_this_backend_ran(plan):
    x, weight, bias = (t.requires_grad_() for t in SAMPLES[1].inputs(torch.float32))
    with forced(plan), profile(activities=[ProfilerActivity.CPU]) as profiled:
        explanation = fastdl.explain("linear", x, weight, bias, activation="relu")
        fastdl.ops.linear(x, weight, bias, activation="relu").sum().backward()
    assert (explanation.backend, explanation.algorithm) == plan
    ran = {event.name for event in profiled.events()}
    passes = ("linear_activation", "linear_activation_inplace", "linear_activation_backward")
    ours = {"fastdl::linear", *(f"fastdl::{name}" for name in passes)} & ran
    if plan.backend == "reference":
        assert not ours
        assert "aten::relu" in ran
        return
    forward = "fastdl::linear_activation_inplace" if plan == COMPOSED else "fastdl::linear"
    assert ours == {forward, "fastdl::linear_activation_backward"}
    assert ("aten::addmm" in ran) == (plan == COMPOSED)
    assert not {"aten::relu", "aten::threshold_backward"} & ran
    assert torch._C._dispatch_has_kernel_for_dispatch_key(forward, "CPU")


@pytest.mark.parametrize("plan", PLANS, ids=name)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=lambda d: str(d)[6:])
def test_autocast(plan, dtype):
    """Under autocast: computed and returned in its dtype, gradients in the parameters' own."""
    x, weight, bias = (t.requires_grad_() for t in SAMPLES[3].inputs(torch.float32))
    with forced(plan), torch.autocast("cpu", dtype=dtype):
        output = fastdl.ops.linear(x, weight, bias, activation="gelu")
    assert output.dtype == dtype
    gradients = torch.autograd.grad(output.float().square().sum(), (x, weight, bias))
    with forced(plan):
        casts = [t.detach().to(dtype).requires_grad_() for t in (x, weight, bias)]
        by_hand = fastdl.ops.linear(*casts, activation="gelu")
    assert_close(output, by_hand, rtol=0, atol=0)
    expected = torch.autograd.grad(by_hand.float().square().sum(), casts)
    for gradient, truth in zip(gradients, expected, strict=True):
        assert gradient.dtype == torch.float32
        assert_close(gradient, truth.float(), rtol=0, atol=0)
