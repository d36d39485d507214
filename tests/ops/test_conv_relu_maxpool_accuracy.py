"""The error rule for every plan, sample and dtype; exact equality on small integers; proof of who computed."""

from __future__ import annotations

import functools
import os

import pytest
import torch
from conv_relu_maxpool_plans import (
    COMPOSED,
    DTYPES,
    KERNELS,
    OP,
    PLANS,
    Operators,
    Plan,
    cases,
    eager,
    forced,
)
from torch.profiler import ProfilerActivity, profile

import fastdl
from fastdl import _extension, dispatch
from fastdl.ops.conv_relu_maxpool import backends
from fastdl.testing.conv_relu_maxpool import NAMES, SAMPLES, Sample, reports, run_plan
from fastdl.testing.error_rule import is_ok

pytestmark = pytest.mark.isa


def full_plan(plan: Plan, sample: Sample, dtype: torch.dtype) -> backends.Plan:
    return backends.make_plan(dispatch.Choice(*plan), sample.geometry(*sample.inputs(dtype)))


def skip_unless_here(plan: Plan) -> None:
    if (reason := plan.skip_reason()) is not None:
        pytest.skip(reason)


def test_the_instruction_set_is_the_one_asked_for():
    asked = os.environ.get("FASTDL_CPU_ISA")
    if not _extension.cpu.loaded:
        pytest.skip(f"CPU kernels are not loaded: {_extension.cpu.error}")
    best = _extension.CPU_ISAS[torch.ops.fastdl._best_cpu_isa()]
    assert _extension.cpu_isa() == (asked or best)


@pytest.mark.parametrize(("plan", "sample", "dtype"), cases(KERNELS, DTYPES[1:]))
def test_error_rule(plan, sample, dtype):
    skip_unless_here(plan)
    full = full_plan(plan, sample, dtype)
    for quantity, report in reports(sample, full, dtype).items():
        algorithm = plan.algorithm if quantity in ("output", "record") else full.backward_algorithm
        assert is_ok(report, algorithm, dtype), f"{quantity}: {report}"


@pytest.mark.parametrize(("plan", "sample", "dtype"), cases(KERNELS, DTYPES[:1]))
def test_float64_is_of_reference_quality(plan, sample, dtype):
    """The truth of the error rule is itself torch in float64, so here only the last bits may differ."""
    skip_unless_here(plan)
    for quantity, report in reports(sample, full_plan(plan, sample, dtype), dtype).items():
        assert report.relative_l2 < 1e-15, f"{quantity}: {report}"


@pytest.mark.parametrize(("plan", "sample", "dtype"), cases(KERNELS, DTYPES))
def test_small_integers_are_exact(plan, sample, dtype):
    """Sums of small integers are exact in every dtype, so any wrong index shows, however small its effect."""
    skip_unless_here(plan)
    full = full_plan(plan, sample, dtype)
    for seed, input_gradient in ((0, True), (1, False)):
        run = run_plan(sample, full, dtype, seed, integers=True, input_gradient=input_gradient)
        for name, value, truth in zip(NAMES, run.values, run.truths, strict=True):
            if value is None:
                continue
            assert truth.count_nonzero() > 0.05 * truth.numel(), "the sample proves nothing"
            assert truth.abs().max() < 256, "the sample is not exact in bfloat16"
            products = plan.algorithm if name == "output" else full.backward_algorithm
            if products == "winograd":
                value = value.double().round()
            # rounding the exact sum once is all a dtype may do
            torch.testing.assert_close(value.to(dtype), truth.to(dtype), rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("plan", [p for p in KERNELS if p.exact_products], ids=str)
@pytest.mark.parametrize("sample", [s for s in SAMPLES if "pool_size" in s.kwargs], ids=str)
def test_ties_of_integers_go_to_the_first_as_in_torch(plan, sample):
    """Small integers tie all the time: indices and values equal torch's composition exactly."""
    x, weight, bias = sample.inputs(torch.float32, integers=True)
    if not plan.serves(sample, torch.float32):
        pytest.skip(f"{plan} does not serve this sample")
    with forced(plan):
        output, indices = fastdl.ops.conv_relu_maxpool(x, weight, bias, **sample.kwargs, return_indices=True)
    expected, expected_indices = eager(x, weight, bias, **sample.kwargs, return_indices=True)
    torch.testing.assert_close(output, expected, rtol=0, atol=0)
    torch.testing.assert_close(indices, expected_indices, rtol=0, atol=0)


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_this_backend_ran(plan):
    """explain() names it, its operator ran, and torch's pool did not."""
    x, weight, bias = (t.requires_grad_() for t in SAMPLES[2].inputs(torch.float32))
    x.requires_grad_(plan.algorithm != "direct")  # as for a first layer, which is what its backward serves
    call = functools.partial(fastdl.ops.conv_relu_maxpool, x, weight, bias, padding=1, pool_size=2)
    with forced(plan):
        explanation = fastdl.explain(OP, x, weight, bias, padding=1, pool_size=2)
        assert (explanation.backend, explanation.algorithm) == plan
        with Operators() as operators:
            call().sum().backward()
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            call().sum().backward()
    ran = {event.name for event in profiled.events()}
    if not plan.raw_operators:
        assert "aten::max_pool2d_with_indices" in operators.names
        assert not any(name.startswith("fastdl::") for name in ran)
        return
    prefix = "fastdl::bias_relu_maxpool" if plan == COMPOSED else "fastdl::conv_relu_maxpool"
    assert prefix in operators.names
    full = full_plan(plan, SAMPLES[2], torch.float32)
    composed = full.backward_algorithm == "composed"
    backward = "fastdl::bias_relu_maxpool_backward" if composed else "fastdl::conv_relu_maxpool_backward"
    assert backward in operators.names
    if _extension.cpu.loaded:
        assert prefix in ran
        assert backward in ran
        torch_pass = {
            "aten::relu",
            "aten::max_pool2d",
            "aten::max_pool2d_with_indices",
            "aten::threshold_backward",
        }
        assert not torch_pass & ran
        assert torch._C._dispatch_has_kernel_for_dispatch_key(prefix, "CPU")


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=lambda d: str(d)[6:])
def test_autocast(plan, dtype):
    """Under autocast: computed and returned in its dtype, gradients in the parameters' own."""
    plan.skip_unless_it_takes(dtype)
    x, weight, bias = (t.requires_grad_() for t in SAMPLES[2].inputs(torch.float32))
    with forced(plan), torch.autocast("cpu", dtype=dtype):
        output = fastdl.ops.conv_relu_maxpool(x, weight, bias, padding=1, pool_size=2)
    assert output.dtype == dtype
    gradients = torch.autograd.grad(output.float().square().sum(), (x, weight, bias))
    with forced(plan):
        casts = [t.detach().to(dtype).requires_grad_() for t in (x, weight, bias)]
        by_hand = fastdl.ops.conv_relu_maxpool(*casts, padding=1, pool_size=2)
    torch.testing.assert_close(output, by_hand, rtol=0, atol=0)
    expected = torch.autograd.grad(by_hand.float().square().sum(), casts)
    for gradient, truth in zip(gradients, expected, strict=True):
        assert gradient.dtype == torch.float32
        torch.testing.assert_close(gradient, truth.float(), rtol=0, atol=0)


def test_autocast_leaves_float64_alone():
    x, weight, bias = SAMPLES[2].inputs(torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert fastdl.ops.conv_relu_maxpool(x, weight, bias, padding=1).dtype == torch.float64
