"""The error rule for every plan, sample and dtype; exact equality on small integers; proof of who computed."""

from __future__ import annotations

import pytest
import torch
from conv2d_plans import (
    COMPOSED,
    DEPTHWISE,
    DTYPES,
    IMPLICIT_GEMM,
    KERNELS,
    ONEDNN,
    PLANS,
    PRODUCT,
    REFERENCE,
    WINOGRAD,
    call,
    cases,
    forced,
    name,
    serves,
    skip_unless_it_serves,
    tensors_of,
)
from conv_relu_maxpool_plans import Operators
from torch.testing import assert_close

import fastdl
from fastdl import _extension
from fastdl.ops import conv2d
from fastdl.ops.conv2d.backends import make_plan
from fastdl.testing.conv2d import NAMES, SAMPLES, reports, run_plan
from fastdl.testing.error_rule import is_ok

pytestmark = pytest.mark.isa


def full_plan(plan, sample, dtype):
    if not _extension.cpu.loaded:
        pytest.skip(f"CPU kernels are not loaded: {_extension.cpu.error}")
    return make_plan(plan, sample.geometry(*sample.inputs(dtype)))


@pytest.mark.parametrize(("plan", "sample", "dtype"), cases((*KERNELS, DEPTHWISE, PRODUCT), DTYPES[1:]))
def test_error_rule(plan, sample, dtype):
    for quantity, report in reports(sample, full_plan(plan, sample, dtype), dtype).items():
        assert is_ok(report, plan.algorithm, dtype), f"{quantity}: {report}"


@pytest.mark.parametrize(("plan", "sample", "dtype"), cases((COMPOSED,), DTYPES[:1]))
def test_float64_is_of_reference_quality(plan, sample, dtype):
    for quantity, report in reports(sample, full_plan(plan, sample, dtype), dtype).items():
        assert report.relative_l2 < 1e-15, f"{quantity}: {report}"


OF_INTEGERS = tuple(s for s in SAMPLES if s.activation in (None, "relu", "relu6"))


@pytest.mark.parametrize(
    ("plan", "sample", "dtype"), cases((*KERNELS, DEPTHWISE, PRODUCT), DTYPES, OF_INTEGERS)
)
def test_small_integers_are_exact(plan, sample, dtype):
    """Any wrong index shows; in 16 bits the output alone: sums over a batch round."""
    run = run_plan(sample, full_plan(plan, sample, dtype), dtype, 0, integers=True)
    names = NAMES if dtype in DTYPES[:2] else NAMES[:2]
    for quantity, value, truth in zip(names, run.values, run.truths, strict=False):
        if value is None:
            continue
        assert truth.count_nonzero() > 0.05 * truth.numel(), "the sample proves nothing"
        value = value.double().round() if plan == WINOGRAD else value
        assert_close(value.to(dtype), truth.to(dtype), rtol=0, atol=0, msg=quantity)


@pytest.mark.parametrize("plan", [*PLANS, DEPTHWISE, PRODUCT], ids=name)
def test_this_backend_ran(plan):
    """explain() names it, and the operators that ran are its own."""
    sample = next(s for s in SAMPLES[1:] if serves(plan, s, torch.float32))
    tensors = tensors_of(sample)
    leaves = [t.clone().requires_grad_() for t in tensors]
    with forced(plan):
        explanation = fastdl.explain("conv2d", *tensors[:3], **sample.kwargs)
        with Operators() as inference:
            call(conv2d, sample, tensors)
        with Operators() as training:
            call(conv2d, sample, leaves).sum().backward()
    assert (explanation.backend, explanation.algorithm) == plan
    ours = [operator for operator in inference.names if "fastdl::" in operator]
    expected = {
        REFERENCE: [],
        COMPOSED: ["fastdl::conv2d_epilogue"],
        WINOGRAD: ["fastdl::conv2d"],
        IMPLICIT_GEMM: ["fastdl::conv2d"],
        DEPTHWISE: ["fastdl::conv2d"],
        ONEDNN: ["fastdl::weight_fingerprint"],
        PRODUCT: ["fastdl::conv2d_epilogue"],
    }
    assert ours == expected[plan]
    if plan in (WINOGRAD, IMPLICIT_GEMM, DEPTHWISE):
        assert inference.names == ours  # one kernel and no pass besides
    if plan == PRODUCT:
        assert not any("convolution" in name for name in inference.names)
    if plan == ONEDNN:
        assert "mkldnn::_convolution_pointwise.binary" in inference.names
    if plan == WINOGRAD:
        assert {"fastdl::conv2d", "fastdl::conv2d_backward"} < set(training.names)
        assert not any("convolution" in operator for operator in training.names)
    else:
        assert "aten::convolution_backward" in training.names


def test_what_winograd_does_not_take_is_composed():
    def served(x, weight, **arguments):
        explanation = fastdl.explain("conv2d", x, weight, **arguments)
        return explanation.backend, explanation.algorithm

    if not _extension.cpu.loaded:
        pytest.skip(f"CPU kernels are not loaded: {_extension.cpu.error}")
    x, weight = torch.randn(4, 32, 28, 28), torch.randn(32, 32, 3, 3)
    assert served(x, weight, padding=1) == WINOGRAD
    for arguments in (dict(stride=2), dict(dilation=2), dict(groups=2)):
        kernel = weight[:, :16] if "groups" in arguments else weight
        assert served(x, kernel, padding=1, **arguments) == COMPOSED
    assert served(x.double(), weight.double(), padding=1) == COMPOSED
    with fastdl.precision("strict"):
        assert served(x, weight, padding=1) == COMPOSED
    with fastdl.backend("reference"):
        assert served(x, weight, padding=1) == REFERENCE
    with fastdl.backend("cuda"), pytest.raises(fastdl.UnsupportedError):
        conv2d(x, weight)


@pytest.mark.parametrize("plan", PLANS, ids=name)
@pytest.mark.parametrize("dtype", DTYPES[2:], ids=lambda d: str(d)[6:])
def test_autocast(plan, dtype):
    """Whatever the dtypes that come in; gradients in their own."""
    sample = SAMPLES[1]
    skip_unless_it_serves(plan, sample, dtype)
    leaves = [t.requires_grad_() for t in tensors_of(sample)]
    mixed = [leaves[0].detach().to(dtype), *(t.detach() for t in leaves[1:])]
    with forced(plan), torch.autocast("cpu", dtype=dtype):
        output, of_mixed = call(conv2d, sample, leaves), call(conv2d, sample, mixed)
    casts = [t.detach().to(dtype).requires_grad_() for t in leaves]
    with forced(plan):
        by_hand = call(conv2d, sample, casts)
        without_gradients = call(conv2d, sample, [t.detach() for t in casts])
    assert output.dtype == of_mixed.dtype == dtype
    assert_close(output, by_hand, rtol=0, atol=0)
    assert_close(of_mixed, without_gradients, rtol=0, atol=0)
    ours = torch.autograd.grad(output.float().square().sum(), leaves)
    theirs = torch.autograd.grad(by_hand.float().square().sum(), casts)
    for gradient, expected in zip(ours, theirs, strict=True):
        assert gradient.dtype == torch.float32
        assert_close(gradient, expected.float(), rtol=0, atol=0)
