"""The error rule for every sample and dtype, memory bounds, threads, repetition; proof of who computed."""

from __future__ import annotations

import pytest
import torch
from attention_plans import DTYPES, decode_plan, flash_plan, has_few_rows, named
from torch.profiler import ProfilerActivity, profile

import fastdl
from fastdl.ops.attention import backends
from fastdl.testing.attention import SAMPLES, Sample, algorithm, reports
from fastdl.testing.error_rule import is_ok
from tests.guarded import guarded

pytestmark = pytest.mark.isa


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sample", named())
def test_error_rule(sample, dtype):
    plan = flash_plan(sample)
    for quantity, report in reports(sample, plan, dtype).items():
        assert is_ok(report, algorithm(plan, quantity), dtype), f"{quantity}: {report}"


FEW_ROWS = tuple(sample for sample in SAMPLES if has_few_rows(sample))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sample", named(FEW_ROWS))
def test_error_rule_of_few_rows(sample, dtype):
    found = reports(sample, decode_plan(sample), dtype)
    assert "output" in found
    for quantity, report in found.items():
        assert report.within_rule, f"{quantity}: {report}"


def results(sample: Sample, dtype: torch.dtype, around=lambda t: t) -> list[torch.Tensor]:
    """Output, lse and the gradients by the kernels, each tensor of the call passed through `around`."""
    plan = flash_plan(sample)
    q, k, v, context = sample.inputs(dtype)
    q, k, v = (around(t) for t in (q, k, v))
    context = type(context)(*(None if t is None else around(t) for t in context))
    few = backends.forward(decode_plan(sample), q, k, v, context) if has_few_rows(sample) else ()
    output, lse = backends.forward(plan, q, k, v, context)
    grad_output = around(torch.randn(output.shape, generator=torch.Generator().manual_seed(3)).to(dtype))
    needs = (context.bias is not None, context.sink is not None)
    saved = (around(output), around(lse))
    gradients = backends.backward(plan, grad_output, None, q, k, v, *saved, context, *needs)
    return [*few, output, lse, *(g for g in gradients if g is not None)]


@pytest.mark.parametrize("before", [False, True], ids=["end", "start"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sample", named())
def test_nothing_outside_the_tensors_is_touched(sample, dtype, before):
    """A read past either end of any tensor is a segmentation fault."""
    around = results(sample, dtype, lambda t: guarded(t, before))
    for a, b in zip(around, results(sample, dtype), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("sample", named())
def test_threads_change_nothing(sample, threads):
    threads(1)
    alone = results(sample, torch.float32)
    for count in (2, 4):
        threads(count)
        for a, b in zip(alone, results(sample, torch.float32), strict=True):
            assert torch.equal(a, b)


def test_few_heads_and_many_keys_are_cut_alike_for_any_number_of_threads(threads):
    sample = Sample(H=1, D=16, L_q=100, L_k=2100, call=dict(causal="bottom_right"))
    threads(1)
    alone = results(sample, torch.float32)
    threads(3)
    assert all(torch.equal(a, b) for a, b in zip(alone, results(sample, torch.float32), strict=True))
    for report in reports(sample, flash_plan(sample), torch.float32).values():
        assert report.within_rule, str(report)


@pytest.mark.parametrize(
    ("bias", "L_k"), [((1, 6, 20, 70), 70), ((7, 1, 1, 70), 70), ((1, 1, 20, 600), 600), ((1, 1, 20, 1), 60)]
)
def test_a_shared_bias_is_summed_alike_for_any_number_of_threads(bias, L_k, threads):
    """Several sequences and heads add to it one after another, in several ranges that are summed at the end."""
    sample = Sample(H=6, D=16, B=7, L_q=20, L_k=L_k, bias=bias)
    threads(1)
    alone = results(sample, torch.float32)
    threads(3)
    assert all(torch.equal(a, b) for a, b in zip(alone, results(sample, torch.float32), strict=True))
    for report in reports(sample, flash_plan(sample), torch.float32).values():
        assert report.within_rule, str(report)


@pytest.mark.parametrize("layout", ["heads last", "every other row", "expanded"])
def test_strides(layout):
    sample = Sample(H=2, D=24, B=2, L_q=20, L_k=33)
    plan = flash_plan(sample)
    q, k, v, context = sample.inputs(torch.float32)

    def laid_out(t: torch.Tensor) -> torch.Tensor:
        if layout == "heads last":
            return t.transpose(1, 2).contiguous().transpose(1, 2)
        if layout == "every other row":
            return t.repeat_interleave(2, 2)[:, :, ::2]
        return t[:, :1].expand_as(t)

    q, k, v = (laid_out(t) for t in (q, k, v))
    expected = backends.forward(plan, *(t.contiguous() for t in (q, k, v)), context)
    for ours, plain in zip(backends.forward(plan, q, k, v, context), expected, strict=True):
        assert torch.equal(ours, plain)


def test_few_rows_take_their_own_kernel_in_inference_alone():
    q, k, v, _ = FEW_ROWS[0].inputs(torch.float32)
    flash_plan(FEW_ROWS[0])
    assert fastdl.explain("attention", q, k, v, enable_gqa=True).algorithm == "decode"
    trained = fastdl.explain("attention", q.requires_grad_(), k, v, enable_gqa=True, return_lse=True)
    assert trained.algorithm == "flash"
    tiny = torch.zeros(1, 1, 1, 8)
    assert fastdl.explain("attention", tiny, tiny, tiny).algorithm == "sdpa"


def test_the_kernels_ran():
    sample = SAMPLES[0]
    flash_plan(sample)
    q, k, v, _ = sample.inputs(torch.float32)
    for t in (q, k, v):
        t.requires_grad_()
    with fastdl.backend("cpu"), profile(activities=[ProfilerActivity.CPU]) as seen:
        fastdl.ops.attention(q, k, v, return_lse=True)[0].sum().backward()
    names = {event.key for event in seen.key_averages()}
    assert {"fastdl::attention", "fastdl::attention_backward"} <= names
    assert not {name for name in names if "bmm" in name or "softmax" in name}
