"""The Triton kernels of linear by the error rule and against the reference, run by Triton's interpreter."""

import pytest
import torch
from torch.testing import assert_close

import fastdl
from fastdl.dispatch import Choice
from fastdl.ops.linear.activations import ACTIVATIONS, BY_OUTPUT, NAMES
from fastdl.ops.linear.backends import make_plan
from fastdl.testing.linear import SAMPLES, reports, run_plan

SMALL = [s for s in SAMPLES if torch.Size(s.rows).numel() * s.K * s.N < 1e6]
FUSED, COMPOSED = Choice("triton", "fused"), Choice("triton", "composed")


@pytest.mark.parametrize("choice", [FUSED, COMPOSED], ids="-".join)
@pytest.mark.parametrize("sample", SMALL, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=lambda d: str(d)[6:])
def test_error_rule(choice, sample, dtype):
    plan = make_plan(choice, sample.activation, sample.dropout_p)
    for quantity, report in reports(sample, plan, dtype).items():
        assert report.within_rule, f"{quantity}: {report}"


@pytest.mark.parametrize("sample", SMALL[:3], ids=str)
def test_small_integers_are_exact(sample):
    plain = type(sample)(sample.rows, sample.K, sample.N, bias=sample.bias)
    run = run_plan(plain, make_plan(FUSED, None, 0.0), torch.float16, 3, integers=True)
    for value, truth in zip(run.values, run.truths, strict=True):
        if value is not None:
            assert_close(value, truth.to(torch.float16), rtol=0, atol=0)


@pytest.mark.parametrize("activation", NAMES)
@pytest.mark.parametrize("p", [0.0, 0.4])
def test_passes_equal_the_reference(activation, p):
    """Values beyond any range too: NaN and infinities; the mask bit for bit."""
    pre = torch.randn(37, 70)
    pre[0, :5] = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, -20.0])
    seed, code = (torch.tensor([-(2**50) + 3]) if p else None), ACTIVATIONS[activation]
    ours, theirs = torch.ops.fastdl.linear_activation_triton, torch.ops.fastdl.linear_activation
    output = ours(pre, seed, code, p)
    expected = theirs(pre, seed, code, p)
    assert_close(output, expected, rtol=1e-5, atol=1e-6, equal_nan=True)
    assert torch.equal(output == 0, expected == 0)
    overwritten = pre.t().clone().t()
    torch.ops.fastdl.linear_activation_inplace_triton(overwritten, seed, code, p)
    assert torch.equal(overwritten.nan_to_num(7), output.nan_to_num(7))
    grad, saved = torch.randn(37, 70), expected if activation in BY_OUTPUT else pre
    backward = torch.ops.fastdl.linear_activation_backward_triton(grad, saved, seed, code, p, True)
    truth = torch.ops.fastdl.linear_activation_backward(grad, saved, seed, code, p, True)
    for a, b in zip(backward, truth, strict=True):
        assert_close(a, b, rtol=1e-5, atol=1e-5, equal_nan=True)


def test_the_public_op_is_served():
    x, weight, bias = (t.requires_grad_() for t in SAMPLES[0].inputs(torch.float32))
    with fastdl.backend("triton"):
        assert fastdl.explain("linear", x, weight, bias, activation="gelu").backend == "triton"
        output = fastdl.ops.linear(x, weight, bias, activation="gelu")
    assert_close(output, torch.nn.functional.gelu(torch.nn.functional.linear(x, weight, bias)))


def test_dropout_alone_is_the_reference_s():
    x, found = torch.randn(37, 70, requires_grad=True), []
    for backend in ("reference", "triton"):
        torch.manual_seed(6)
        with fastdl.backend(backend):
            found.append(fastdl.ops.dropout(x, 0.4))
    assert_close(*found)
    assert_close(*(torch.autograd.grad(output.sum(), x)[0] for output in found))
