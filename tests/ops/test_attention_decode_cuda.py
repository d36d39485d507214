"""The CUDA kernels of attention for few query rows, executed on the CPU by emulation. Backend: cuda."""

from __future__ import annotations

import pytest
import torch

from fastdl.dispatch import Choice
from fastdl.ops.attention import backends, registration
from fastdl.testing.attention import SAMPLES, Sample, algorithm, reports
from fastdl.testing.error_rule import is_ok
from tests.emulation import library

if library.missing() is not None:
    pytest.skip(library.missing(), allow_module_level=True)

from tests.emulation.attention import Emulated
from tests.ops.attention_cuda_calls import DTYPES, arguments_of, assert_near, wide

# One tile of rows and several, of one head and of several; keys in one range, in some, in more than warps; each head
# size; every option; ranges of which some see nothing.
PROBLEMS = (
    Sample(H=4, H_kv=2, D=24, D_v=20, B=2, L_q=3, L_k=600, call=dict(causal="bottom_right")),
    Sample(H=6, H_kv=1, D=72, D_v=100, L_q=4, L_k=270, sink=True, alibi=True, call=dict(softcap=2.0)),
    Sample(H=2, D=136, L_q=1, L_k=530, bias=(1, 2, 1, 530), mask=(1, 1, 1, 530)),
    Sample(H=4, H_kv=2, D=16, L_q=3, L_k=520, bias=(1, 4, 3, 520), sink=True, call=dict(dropout_p=0.2)),
    Sample(H=4, H_kv=2, D=8, B=2, L_q=2, L_k=70, mask=(2, 4, 2, 70), call=dict(causal="top_left")),
    Sample(H=4, H_kv=2, D=24, lengths_q=(3, 0, 7), lengths_k=(2, 5, 600), alibi=True, call=dict(window=(500, 0))),
    Sample(H=2, D=8, L_q=5, L_k=900, call=dict(window=(600, 50))),
    Sample(H=2, D=8, L_q=5, L_k=3, call=dict(causal="bottom_right")),
    Sample(H=1, D=8, L_q=1, L_k=2900),
    Sample(H=2, D=8, L_q=2, L_k=0),
)  # fmt: skip
PROCESSORS = 8


def decoding(sample: Sample, dtype: torch.dtype) -> tuple:
    *tensors, integers, numbers = arguments_of(sample, dtype)
    return *tensors, [*integers[:-1], 1], numbers


@DTYPES
@pytest.mark.parametrize("sample", PROBLEMS, ids=str)
def test_is_the_definition_under_every_schedule(sample: Sample, dtype: torch.dtype):
    arguments = decoding(sample, dtype)
    found = Emulated(multiprocessors=PROCESSORS).forward(*arguments)
    for ours, expected in zip(found, registration.attention(*wide(arguments)), strict=True):
        assert_near(ours, expected, dtype)
    for schedule, shared in ((1, 227), (3, 34 if dtype is torch.float32 else 44), (7, 227)):
        if max(sample.D, sample.D_v) > 64:
            shared = 227
        other = Emulated(schedule, largest_shared=shared << 10, multiprocessors=PROCESSORS)
        assert all(torch.equal(*pair) for pair in zip(other.forward(*arguments), found, strict=True))


def test_keys_are_split_by_the_device_alone():
    """More processors, more ranges: other roundings, and no range where the device is full."""
    few, many = (
        Emulated(multiprocessors=n).forward(*decoding(PROBLEMS[0], torch.float32))[0] for n in (1, 132)
    )
    assert not torch.equal(few, many)
    assert_near(few, many, torch.float32)


def test_any_strides():
    arguments = decoding(PROBLEMS[3], torch.float16)
    expected = Emulated().forward(*arguments)
    heads_last = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in arguments[:3]]
    odd = [torch.cat((t, t[..., :1]), -1)[..., :-1] for t in arguments[:3]]  # rows of 17 elements
    for tensors in (heads_last, odd):
        found = Emulated().forward(*tensors, *arguments[3:])
        assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_packed_starts_are_not_trusted():
    """Whatever cu_seqlens say, nothing outside the tensors is touched (their memory is guarded)."""
    q, k, v, context = Sample(H=2, H_kv=1, D=8, lengths_q=(9,), lengths_k=(300,)).inputs(torch.float32)
    for starts in ([0, 5, 400], [-7, 3, 9], [2, 9, 4], [2**40, -(2**40), 9]):
        cu = torch.tensor(starts)
        tensors = (q, k, v, *context._replace(cu_seqlens_q=cu, cu_seqlens_k=cu))
        output, _ = Emulated(multiprocessors=PROCESSORS).forward(
            *tensors, [1, -1, -1, 9, 300, 1], [1.0, 0.0, 0.0]
        )
        assert output.isfinite().all()


def test_a_nan_stays_in_its_head():
    q, k, v, context = Sample(H=2, D=8, L_q=2, L_k=600).inputs(torch.float32)
    k[0, 1, 590, 2] = torch.nan
    output, lse = Emulated(multiprocessors=PROCESSORS).forward(
        q, k, v, *context, [0, -1, -1, 0, 0, 1], [0.3, 0.0, 0.0]
    )
    assert output[0, 0].isfinite().all()
    assert output[0, 1].isnan().all()
    assert lse[0, 1].isnan().all()


@DTYPES
@pytest.mark.parametrize("sample", [SAMPLES[5], SAMPLES[8]], ids=str)
def test_error_rule(sample: Sample, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    emulated = Emulated(multiprocessors=PROCESSORS)
    monkeypatch.setitem(backends.RAW, "cuda", backends.RawOperators(emulated.forward, emulated.backward))
    plan = backends.make_plan(Choice("cuda", "decode"), sample.as_call())
    for quantity, report in reports(sample, plan, dtype).items():
        assert is_ok(report, algorithm(plan, quantity), dtype), f"{quantity}: {report}"
