"""The CUDA kernels of attention for few keys, executed on the CPU by emulation. Backend: cuda."""

from __future__ import annotations

import pytest
import torch

from fastdl.dispatch import Choice
from fastdl.ops.attention import backends, registration
from fastdl.testing.attention import Sample, algorithm, reports
from fastdl.testing.error_rule import is_ok
from tests.emulation import library

if library.missing() is not None:
    pytest.skip(library.missing(), allow_module_level=True)

from tests.emulation.attention import Emulated
from tests.ops.attention_cuda_calls import DTYPES, arguments_of, assert_near, backward_arguments_of, wide

# One part of the keys and two, parts that a warp does not see, rows that see nothing; one tile of queries and several;
# each head size; every option.
PROBLEMS = (
    Sample(H=2, D=16, L_q=70, L_k=128, call=dict(causal="bottom_right")),
    Sample(H=4, H_kv=2, D=20, D_v=9, B=2, L_q=130, L_k=67, sink=True, call=dict(causal="top_left")),
    Sample(H=2, D=64, B=2, L_q=9, L_k=100, mask=(2, 1, 9, 100), alibi=True, call=dict(softcap=1.5)),
    Sample(H=2, D=24, L_q=140, L_k=90, bias=(1, 2, 140, 90), call=dict(dropout_p=0.3)),
    Sample(H=1, D=8, L_q=128, L_k=128, call=dict(window=(20, 5))),
    Sample(H=2, D=8, L_q=40, L_k=17, call=dict(causal="bottom_right")),
    Sample(H=1, D=72, D_v=100, L_q=70, L_k=66),
    Sample(H=2, D=8, L_q=3, L_k=0),
)
NO_QUERIES = Sample(H=4, H_kv=2, D=8, L_q=0, L_k=20)


def of_few_keys(sample: Sample, dtype: torch.dtype) -> tuple:
    *tensors, integers, numbers = arguments_of(sample, dtype)
    return *tensors, [*integers[:-1], 2], numbers


@DTYPES
@pytest.mark.parametrize("sample", PROBLEMS, ids=str)
def test_is_the_definition_under_every_schedule(sample: Sample, dtype: torch.dtype):
    arguments = of_few_keys(sample, dtype)
    if dtype is torch.float32 and sample.D > 64:
        with pytest.raises(library.EmulationError, match="error 801"):  # cudaErrorNotSupported
            Emulated().forward(*arguments)
        return
    found = Emulated().forward(*arguments)
    for ours, expected in zip(found, registration.attention(*wide(arguments)), strict=True):
        assert_near(ours, expected, dtype)
    for schedule in (1, 3, 7):
        other = Emulated(schedule).forward(*arguments)
        assert all(torch.equal(*pair) for pair in zip(other, found, strict=True))


@DTYPES
@pytest.mark.parametrize("sample", [s for s in (*PROBLEMS, NO_QUERIES) if s.D <= 64], ids=str)
def test_backward_is_the_definition_under_every_schedule(sample: Sample, dtype: torch.dtype):
    arguments = backward_arguments_of(of_few_keys(sample, dtype))
    found = Emulated().backward(*arguments)
    for ours, expected in zip(found, registration.attention_backward(*wide(arguments)), strict=True):
        assert_near(ours, expected, dtype)
    other = Emulated(7).backward(*arguments)
    assert all(torch.equal(*pair) for pair in zip(other, found, strict=True))


def test_more_keys_packed_sequences_and_gradients_of_large_heads_are_refused():
    for sample in (Sample(H=1, D=8, L_q=3, L_k=129), Sample(H=1, D=8, lengths_q=(3,), lengths_k=(9,))):
        arguments = of_few_keys(sample, torch.float16)
        with pytest.raises(library.EmulationError, match="error 801"):
            Emulated().forward(*arguments)
        with pytest.raises(library.EmulationError, match="error 801"):
            Emulated().backward(*backward_arguments_of(arguments))
    large = of_few_keys(Sample(H=1, D=65, L_q=3, L_k=9), torch.float16)
    with pytest.raises(library.EmulationError, match="error 801"):
        Emulated().backward(*backward_arguments_of(large))


@DTYPES
def test_error_rule(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    emulated = Emulated()
    monkeypatch.setitem(backends.RAW, "cuda", backends.RawOperators(emulated.forward, emulated.backward))
    plan = backends.make_plan(Choice("cuda", "short"), PROBLEMS[0].as_call())
    for quantity, report in reports(PROBLEMS[0], plan, dtype).items():
        assert is_ok(report, algorithm(plan, quantity), dtype), f"{quantity}: {report}"
