"""The CUDA kernels of attention, executed on the CPU by emulation (csrc/emulation). Backend: cuda."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import fastdl
from fastdl import _extension
from fastdl.dispatch import Choice
from fastdl.ops.attention import backends, registration
from fastdl.testing.attention import Sample, algorithm, reports
from fastdl.testing.error_rule import is_ok
from tests.emulation import library

if library.missing() is not None:
    pytest.skip(library.missing(), allow_module_level=True)

from tests.emulation.attention import Emulated
from tests.ops.attention_cuda_calls import (
    DTYPES,
    TOLERANCES,
    arguments_of,
    assert_near,
    backward_arguments_of,
    wide,
)

# Ragged sizes; several tiles of keys, several blocks of queries; rows that see nothing; every option; each head size.
PROBLEMS = (
    Sample(H=2, D=16, L_q=20, L_k=100, call=dict(causal="bottom_right")),
    Sample(H=2, H_kv=1, D=20, D_v=9, L_q=70, L_k=67, call=dict(causal="top_left")),
    Sample(H=1, D=8, B=2, L_q=40, L_k=17, alibi=True, call=dict(causal="bottom_right")),
    Sample(H=1, D=8, L_q=68, L_k=150, call=dict(window=(6, 3))),
    Sample(H=2, D=8, B=2, L_q=9, L_k=70, mask=(2, 1, 9, 70), sink=True),
    Sample(H=2, D=8, B=2, L_q=18, L_k=20, bias=(1, 2, 18, 20), call=dict(softcap=1.5)),
    Sample(H=2, D=8, B=2, L_q=18, L_k=20, bias=(1, 1, 1, 20), mask=(1, 2, 18, 1)),
    Sample(H=1, D=8, L_q=18, L_k=70, bias=(1, 1, 18, 1), call=dict(dropout_p=0.3)),
    Sample(H=4, H_kv=2, D=24, lengths_q=(3, 0, 77), lengths_k=(2, 5, 90), alibi=True, call=dict(causal="bottom_right")),
    Sample(H=2, D=8, lengths_q=(50, 1), lengths_k=(0, 40), sink=True, call=dict(dropout_p=0.1, softcap=2.0)),
    Sample(H=1, D=72, D_v=100, L_q=17, L_k=40),
    Sample(H=1, D=136, D_v=256, L_q=17, L_k=40, call=dict(dropout_p=0.2)),
)  # fmt: skip


@DTYPES
@pytest.mark.parametrize("sample", PROBLEMS, ids=str)
def test_forward_is_the_definition(sample: Sample, dtype: torch.dtype):
    arguments = arguments_of(sample, dtype)
    truth = registration.attention(*wide(arguments))
    for ours, expected in zip(Emulated().forward(*arguments), truth, strict=True):
        assert_near(ours, expected, dtype)


@DTYPES
@pytest.mark.parametrize("sample", PROBLEMS, ids=str)
def test_backward_is_the_definition(sample: Sample, dtype: torch.dtype):
    arguments = backward_arguments_of(arguments_of(sample, dtype))
    truth = registration.attention_backward(*wide(arguments))
    for ours, expected in zip(Emulated().backward(*arguments), truth, strict=True):
        assert_near(ours, expected, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=lambda dtype: str(dtype)[6:])
def test_every_schedule_and_one_stage_give_the_same_bits(dtype: torch.dtype):
    arguments = arguments_of(PROBLEMS[1], dtype)
    backward = backward_arguments_of(arguments)

    def results(emulated: Emulated) -> tuple[Tensor, ...]:
        return *emulated.forward(*arguments), *emulated.backward(*backward)

    expected = results(Emulated())
    few = 40 << 10 if dtype is torch.float32 else 31 << 10
    for other in (Emulated(1), Emulated(3), Emulated(7), Emulated(2, largest_shared=few)):
        assert all(torch.equal(*pair) for pair in zip(results(other), expected, strict=True))


@pytest.mark.parametrize("dtype", TOLERANCES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("sample", [PROBLEMS[0], PROBLEMS[5], PROBLEMS[9]], ids=str)
def test_error_rule(sample: Sample, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    emulated = Emulated()
    raw = backends.RawOperators(emulated.forward, emulated.backward)
    monkeypatch.setitem(backends.RAW, "cuda", raw)
    plan = backends.make_plan(Choice("cuda", "flash"), sample.as_call())
    for quantity, report in reports(sample, plan, dtype).items():
        assert is_ok(report, algorithm(plan, quantity), dtype), f"{quantity}: {report}"


@pytest.mark.parametrize(
    "shape", [(2, 3, 0), (0, 3, 5), (1, 0, 5)], ids=["no keys", "no sequences", "no queries"]
)
def test_nothing_to_do(shape: tuple[int, int, int]):
    B, L_q, L_k = shape
    arguments = arguments_of(Sample(H=2, D=8, B=B, L_q=L_q, L_k=L_k), torch.float32)
    expected = registration.attention(*arguments)
    gradients = backward_arguments_of(arguments)
    pairs = zip(Emulated().forward(*arguments), expected, strict=True)
    more = zip(Emulated().backward(*gradients), registration.attention_backward(*gradients), strict=True)
    assert all(torch.equal(ours, truth) for ours, truth in (*pairs, *more))


def test_any_strides():
    arguments = arguments_of(PROBLEMS[5], torch.float16)
    expected = Emulated().forward(*arguments)
    apart = [torch.full((*t.shape, 2), torch.nan, dtype=t.dtype)[..., 0].copy_(t) for t in arguments[:3]]
    heads_last = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in arguments[:3]]
    odd = [torch.cat((t, t[..., :1]), -1)[..., :-1] for t in arguments[:3]]  # rows of 9 elements
    bias = arguments[4].transpose(2, 3).contiguous().transpose(2, 3)
    for tensors in (apart, heads_last, odd):
        found = Emulated().forward(*tensors, arguments[3], bias, *arguments[5:])
        assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_packed_starts_are_not_trusted():
    """Whatever cu_seqlens say, nothing outside the tensors is touched (their memory is guarded)."""
    q, k, v, context = Sample(H=1, D=8, lengths_q=(9,), lengths_k=(12,)).inputs(torch.float32)
    for starts in ([0, 5, 200], [-7, 3, 9], [2, 9, 4], [2**40, -(2**40), 9]):
        cu = torch.tensor(starts)
        tensors = (q, k, v, *context._replace(cu_seqlens_q=cu, cu_seqlens_k=cu))
        numbers = ([1, -1, -1, 9, 12, 0], [1.0, 0.0, 0.0])
        output, lse = Emulated().forward(*tensors, *numbers)
        assert output.isfinite().all()
        Emulated().backward(output, None, *tensors[:3], output, lse, *tensors[3:], *numbers, False, False)


def test_a_nan_stays_in_its_head_and_behind_a_mask():
    q, k, v, context = Sample(H=2, D=8, L_q=20, L_k=70, mask=(1, 1, 1, 70)).inputs(torch.float32)
    context.mask[..., 5], context.mask[..., 66] = True, False
    numbers = ([0, -1, -1, 0, 0, 0], [0.3, 0.0, 0.0])
    clean, _ = Emulated().forward(q, k, v, *context, *numbers)
    k[0, 0, 66, 3] = k[0, 1, 5, 2] = torch.nan
    output, lse = Emulated().forward(q, k, v, *context, *numbers)
    assert torch.equal(output[0, 0], clean[0, 0])
    assert output[0, 1].isnan().all()
    assert lse[0, 1].isnan().all()


def explained(
    dtype: torch.dtype = torch.float16,
    D: int = 8,
    L_q: int = 20,
    H: int = 2,
    gradient: bool = False,
    seeded: bool = False,
    **options: object,
) -> tuple[str, str | None]:
    """(algorithm, why not flash) of a call of cuda tensors."""
    with FakeTensorMode():
        k = torch.empty(1, 2, L_q, D, device="cuda", dtype=dtype)
        q = torch.empty(1, H, L_q, D, device="cuda", dtype=dtype, requires_grad=gradient)
        if seeded:
            options["seed"] = torch.empty(1, device="cuda", dtype=torch.int64)
        found = fastdl.explain("attention", q, k, k, **options)
    assert found.backend == "cuda"
    reasons = [why for backend, algorithm, why in found.refused if (backend, algorithm) == ("cuda", "flash")]
    return found.algorithm, *reasons, None


def test_refusals(monkeypatch: pytest.MonkeyPatch):
    assert explained()[1].startswith("CUDA kernels are not loaded")
    monkeypatch.setattr(_extension, "cuda", SimpleNamespace(loaded=True, error=None))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert explained(softcap=2.0)[0] == "flash"
    assert explained(L_q=16, softcap=2.0)[0] == "decode"
    assert explained(L_q=16)[0] == "sdpa"
    assert explained(dropout_p=0.1)[0] == "sdpa"
    assert explained(dropout_p=0.1, seeded=True)[0] == explained(dropout_p=0.1, softcap=2.0)[0] == "flash"
    algorithm, reason = explained()[:2]
    assert algorithm == "sdpa"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert explained(softcap=2.0)[0] == "short"
    assert explained(L_q=129, softcap=2.0)[0] == "flash"
    assert [explained(L_q=128, D=D, softcap=2.0)[0] for D in (64, 65)] == ["short", "short"]
    gradient = dict(softcap=2.0, gradient=True)
    assert [explained(L_q=128, D=D, **gradient)[0] for D in (64, 65)] == ["short", "flash"]
    assert [explained(L_q=128, H=H, enable_gqa=True, **gradient)[0] for H in (8, 10)] == ["short", "flash"]
    assert explained(torch.float32, D=65, softcap=2.0)[0] == "flash"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "never timed" in reason
    assert explained(torch.float64)[1] == "no kernel for torch.float64"
    assert explained(torch.bfloat16)[1] == "bfloat16 needs compute capability 8.0"
    assert explained(D=129)[1] == "a head larger than 128 needs compute capability 8.0"
    assert explained(D=257)[1] == "a head is larger than 256"
