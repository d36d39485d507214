"""The CUDA kernel of attention by wgmma, executed on the CPU by emulation. Backend: cuda."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import pytest
import torch
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

from tests.emulation.attention import AttentionStrides, Emulated
from tests.ops.attention_cuda_calls import arguments_of, assert_near, wide

# Both head sizes, whole and padded; one tile of keys and more than the ring holds; blocks and warpgroups without
# rows; rows and whole tiles that see nothing; every option that the kernel has.
PROBLEMS = (
    Sample(H=2, D=64, L_q=150, L_k=520, call=dict(causal="bottom_right")),
    Sample(H=2, H_kv=1, D=128, D_v=72, B=2, L_q=20, L_k=290, call=dict(causal="top_left")),
    Sample(H=1, D=40, D_v=104, L_q=130, L_k=300, call=dict(window=(60, 20))),
    Sample(H=2, D=8, B=2, L_q=9, L_k=70, mask=(2, 1, 9, 70), sink=True),
    Sample(H=2, D=16, L_q=70, L_k=140, bias=(1, 2, 70, 140), alibi=True, call=dict(softcap=1.5)),
    Sample(H=2, D=8, L_q=200, L_k=3, call=dict(causal="bottom_right")),
    Sample(H=2, D=8, L_q=2, L_k=0),
)
HALVES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=lambda dtype: str(dtype)[6:])


def by_wgmma(sample: Sample, dtype: torch.dtype) -> tuple:
    *tensors, integers, numbers = arguments_of(sample, dtype)
    return *tensors, [*integers[:-1], 3], numbers


@HALVES
@pytest.mark.parametrize("sample", PROBLEMS, ids=str)
def test_is_the_definition_under_every_schedule(sample: Sample, dtype: torch.dtype):
    arguments = by_wgmma(sample, dtype)
    found = Emulated().forward(*arguments)
    for ours, expected in zip(found, registration.attention(*wide(arguments)), strict=True):
        assert_near(ours, expected, dtype)
    for schedule in (1, 2, 7) if dtype is torch.float16 else ():
        other = Emulated(schedule).forward(*arguments)
        assert all(torch.equal(*pair) for pair in zip(other, found, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16], ids=["bfloat16"])
def test_error_rule(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    sample = Sample(H=2, H_kv=1, D=64, L_q=70, L_k=150, call=dict(causal="bottom_right", softcap=2.0))
    emulated = Emulated()
    monkeypatch.setitem(backends.RAW, "cuda", backends.RawOperators(emulated.forward, emulated.backward))
    plan = backends.make_plan(Choice("cuda", "hopper"), sample.as_call())
    assert plan.integers[-1] == 3
    for quantity, report in reports(sample, plan, dtype).items():
        assert is_ok(report, algorithm(plan, quantity), dtype), f"{quantity}: {report}"


def test_strides():
    q, k, v, *rest = by_wgmma(Sample(H=2, D=16, B=2, L_q=20, L_k=140), torch.float16)
    k, v = k[:, :1].expand(-1, 2, -1, -1), v[:1].expand(2, -1, -1, -1)
    expected = Emulated().forward(*(t.contiguous() for t in (q, k, v)), *rest)
    heads_last = q.transpose(1, 2).contiguous().transpose(1, 2)
    found = Emulated().forward(heads_last, k, v, *rest)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_rows_that_no_tensor_map_describes():
    reads = Emulated().library.emulated_attention_hopper_reads
    reads.restype = ctypes.c_bool

    def read(address: int, b: int, h: int, l: int, count: int = 5) -> bool:  # noqa: E741
        sizes = map(ctypes.c_int64, (16, count, 2, 2))
        return reads(ctypes.c_void_p(address), ctypes.byref(AttentionStrides(b, h, l, 1)), *sizes)

    assert read(4096, 160, 80, 16)
    assert read(4096, 0, 0, 16)
    assert read(4096, 160, 80, 0, count=1)
    assert not read(4096, 160, 80, 0)
    assert not read(4104, 160, 80, 16)
    assert not read(4096, 160, 80, 20)
    assert not read(4096, 160, 84, 16)
    assert not read(4096, 164, 80, 16)


@pytest.mark.parametrize(
    ("sample", "dtype"),
    [
        (Sample(H=1, D=8, L_q=3, L_k=5), torch.float32),
        (Sample(H=1, D=20, L_q=3, L_k=5), torch.float16),
        (Sample(H=1, D=8, D_v=136, L_q=3, L_k=5), torch.float16),
        (Sample(H=1, D=8, lengths_q=(3,), lengths_k=(5,)), torch.float16),
        (Sample(H=1, D=8, L_q=3, L_k=5, call=dict(dropout_p=0.1)), torch.float16),
    ],
    ids=str,
)
def test_the_launcher_refuses_what_the_kernel_does_not_compute(sample: Sample, dtype: torch.dtype):
    with pytest.raises(library.EmulationError, match="CUDA error 801"):
        Emulated().forward(*by_wgmma(sample, dtype))


def reason(dtype: torch.dtype = torch.float16, D: int = 64, *, grad: bool = False, **options: object) -> str:
    with FakeTensorMode():
        q = torch.empty(1, 2, 200, D, device="cuda", dtype=dtype, requires_grad=grad)
        if "dropout_p" in options:
            options["seed"] = torch.empty(1, device="cuda", dtype=torch.int64)
        found = fastdl.explain("attention", q, q, q, **options)
    return next(
        why for backend, algorithm, why in found.refused if (backend, algorithm) == ("cuda", "hopper")
    )


def test_refusals(monkeypatch: pytest.MonkeyPatch):
    assert reason().startswith("CUDA kernels are not loaded")
    monkeypatch.setattr(_extension, "cuda", SimpleNamespace(loaded=True, error=None))
    for capability in ((8, 9), (10, 0), (12, 0)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, of=capability: of)
        assert reason() == "needs compute capability 9.0"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert reason(torch.float32) == "its products are of float16 and bfloat16"
    assert reason(D=20) == reason(D=136) == "a head is not a multiple of 8 up to 128"
    assert reason(dropout_p=0.1) == "it has no dropout"
    assert reason(grad=True).startswith("backward needs scores")
    assert reason(softcap=2.0).startswith("it was never timed on a GPU")
