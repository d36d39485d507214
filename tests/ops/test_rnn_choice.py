"""What is decided for calls on machines that are not there, and what deciding costs where sizes vary."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from rnn_plans import OPS, arguments, leaves

import fastdl
from fastdl import _extension, dispatch
from fastdl.dispatch import Choice
from fastdl.ops import products
from fastdl.ops.rnn import backends, plans, refusals
from fastdl.testing.rnn import Sample

# Compute capability -> multiprocessors and KB of shared memory a block: T4, A100, RTX 3090, RTX 4090, H100, RTX 5090.
MACHINES = {
    (7, 5): (40, 64),
    (8, 0): (108, 163),
    (8, 6): (82, 99),
    (8, 9): (128, 99),
    (9, 0): (132, 227),
    (12, 0): (170, 99),
}


@pytest.fixture
def gpu(monkeypatch):
    """As if the CUDA kernels were loaded beside cuDNN; sets the compute capability."""
    monkeypatch.setattr(refusals, "_CUDA_KERNELS", True)
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)

    def of(*capability: int) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
        processors, shared = MACHINES[capability]
        device = SimpleNamespace(multi_processor_count=processors, shared_memory_per_block_optin=shared << 10)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *_: device)

    of(9, 0)
    return of


def chosen(sample: Sample, dtype: torch.dtype) -> tuple[str, str]:
    return tuple(dispatch.choose(sample.cell.split("_")[0], sample.call(dtype, "cuda")))


LSTM, GRU = Sample("lstm", 5, 16, 64, 512), Sample("gru", 5, 16, 64, 512)
SERVED = [
    ((9, 0), LSTM, torch.bfloat16, "fused"),
    ((9, 0), dataclasses.replace(LSTM, H=800), torch.bfloat16, "cudnn"),
    ((9, 0), dataclasses.replace(GRU, H=800), torch.bfloat16, "fused"),
    ((9, 0), dataclasses.replace(GRU, H=512), torch.float32, "cudnn"),
    ((9, 0), dataclasses.replace(GRU, H=400), torch.float32, "fused"),
    ((9, 0), Sample("rnn_tanh", 5, 16, 64, 1032), torch.bfloat16, "cudnn"),
    ((9, 0), dataclasses.replace(LSTM, H=64), torch.float64, "cudnn"),
    ((9, 0), dataclasses.replace(LSTM, H=64, projection=32), torch.float16, "cudnn"),
    ((8, 6), dataclasses.replace(LSTM, H=128), torch.float16, "fused"),
    ((8, 6), dataclasses.replace(LSTM, H=136), torch.float16, "cudnn"),
    # a cooperative grid holds more than a cluster, or than a block where there are no clusters
    ((9, 0), dataclasses.replace(LSTM, T=64, H=800), torch.bfloat16, "fused"),
    ((8, 0), dataclasses.replace(LSTM, T=64), torch.bfloat16, "fused"),
    ((8, 9), dataclasses.replace(GRU, T=64), torch.bfloat16, "fused"),
    ((8, 6), dataclasses.replace(LSTM, T=64, H=200), torch.float32, "fused"),
    ((12, 0), dataclasses.replace(GRU, T=64, H=1000), torch.float16, "fused"),
    ((12, 0), dataclasses.replace(LSTM, T=64, H=1000), torch.float16, "cudnn"),
    ((8, 0), dataclasses.replace(LSTM, T=64, B=256), torch.bfloat16, "cudnn"),
    ((7, 5), dataclasses.replace(LSTM, T=64), torch.float16, "fused"),
    # cuDNN's persistent kernels were timed, the grid was not
    ((8, 0), dataclasses.replace(LSTM, T=64, I=256), torch.float16, "cudnn"),
    ((8, 0), dataclasses.replace(LSTM, T=64, H=128), torch.float32, "cudnn"),
    # torch has none of these: large or not, the kernels do what they can
    ((9, 0), dataclasses.replace(LSTM, H=1200, layer_norm=True), torch.float16, "fused"),
    ((8, 6), dataclasses.replace(LSTM, H=136, layout="lengths"), torch.float16, "fused"),
    ((8, 6), dataclasses.replace(LSTM, H=1200, peephole=True), torch.float16, "fused"),
    # a cell needs one launch in any case
    ((8, 6), dataclasses.replace(LSTM, T=1, H=1200, one_step=True), torch.float16, "fused"),
]


@pytest.mark.parametrize(("capability", "sample", "dtype", "algorithm"), SERVED, ids=str)
def test_cudnn_where_no_persistent_kernel_serves(gpu, capability, sample, dtype, algorithm):
    gpu(*capability)
    assert chosen(sample, dtype) == ("cuda", algorithm)


@pytest.mark.parametrize("gradient", [False, True])
def test_few_sequences_of_a_bfloat16_lstm_are_torchs_on_amx(monkeypatch, gradient):
    monkeypatch.setattr(refusals, "_CPU_KERNELS", True)
    monkeypatch.setattr(_extension, "cpu_isa", lambda: "amx")
    few = dataclasses.replace(LSTM, B=3)
    for sample, dtype, torchs in (
        (few, torch.bfloat16, not gradient),
        (dataclasses.replace(LSTM, B=4), torch.bfloat16, False),
        (dataclasses.replace(GRU, B=3), torch.bfloat16, False),
        (few, torch.float16, False),
        (dataclasses.replace(few, layout="lengths"), torch.bfloat16, False),
    ):
        call = sample.call(dtype)._replace(gradient=gradient)
        assert (dispatch.choose(sample.cell, call) == ("cpu", "aten")) is torchs


def test_a_plain_step_of_few_rows_or_many_is_torchs_where_mkl_has_avx512(monkeypatch):
    monkeypatch.setattr(refusals, "_CPU_KERNELS", True)
    for wide in (False, True):
        monkeypatch.setattr(refusals.products, "wide_mkl", lambda wide=wide: wide)
        for kind, B, H, torchs in (
            ("lstm", 8, 512, False),
            ("gru", 250, 512, False),
            ("rnn_tanh", 15, 512, True),
            ("rnn_tanh", 15, 1024, False),
            ("rnn_relu", 16, 128, True),
            ("rnn_relu", 32, 128, False),
            ("rnn_tanh", 128, 256, False),
            ("rnn_tanh", 129, 256, True),
            ("rnn_tanh", 129, 255, False),
        ):
            call = Sample(kind, 1, B, H, H, one_step=True).call(torch.float32)._replace(gradient=False)
            algorithm = dispatch.choose(kind.split("_")[0], call).algorithm
            assert (algorithm == "aten") is (wide and torchs), (kind, B, H)
            with fastdl.strict():
                assert dispatch.choose(kind.split("_")[0], call).algorithm == "fused"


def test_many_steps_are_projected_at_once_by_tiles(monkeypatch):
    monkeypatch.setattr(products, "cpu_isa", lambda: "amx")
    large = dataclasses.replace(GRU, T=128, B=24, I=200, H=300)
    for sample, dtype, projected in (
        (large, torch.float32, True),
        (large, torch.bfloat16, False),
        (dataclasses.replace(large, layout="packed"), torch.float32, False),
        (dataclasses.replace(large, T=1), torch.float32, False),
        (dataclasses.replace(large, T=1, B=1200), torch.float32, True),
        # by the kernel's own tiles, if not too large for a cache
        (dataclasses.replace(large, B=64), torch.float32, False),
        (dataclasses.replace(large, B=32, H=200), torch.float32, False),
        (dataclasses.replace(large, T=64, B=32, H=400), torch.float32, True),
    ):
        assert backends.make_plan(Choice("cpu", "fused"), sample.call(dtype)).s.projected is projected


def test_without_cudnn_the_kernels_serve_every_size(gpu, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: False)
    assert chosen(dataclasses.replace(LSTM, H=1200), torch.float16) == ("cuda", "fused")


def test_a_forced_backend_takes_its_kernels(gpu):
    with fastdl.backend("cuda"):
        assert chosen(dataclasses.replace(LSTM, H=1200), torch.float16) == ("cuda", "fused")


def test_bfloat16_before_compute_capability_8(gpu):
    """Refused with the reason, and served by torch's layer where it has one."""
    gpu(7, 5)
    assert refusals.refuse_cuda_fused(LSTM.call(torch.bfloat16, "cuda")) == (
        "bfloat16 needs compute capability 8.0"
    )
    assert chosen(LSTM, torch.bfloat16) == ("cuda", "cudnn")


def test_the_reason_is_said(gpu):
    reason = refusals.refuse_cuda_fused(dataclasses.replace(LSTM, H=1200).call(torch.float16, "cuda"))
    assert reason == "1200 hidden units are more than a persistent kernel holds, cuDNN needs fewer launches"


@pytest.mark.parametrize("kind", OPS)
def test_sizes_that_vary_are_decided_once_and_forgotten(kind, monkeypatch):
    """One decision for each T and B, none when it returns, and never more kept than there is room for."""
    monkeypatch.setattr(plans, "_MOST", 8)
    plans._decided.clear()
    decided = []
    choose = dispatch.choose
    monkeypatch.setattr(dispatch, "choose", lambda *given: decided.append(1) or choose(*given))
    most = 0
    for T in range(1, 8):
        for B in (1, 2, 5):
            x, hx, params = arguments(kind, torch.float32, T, B)
            before = len(decided)
            for _ in range(2):
                output = OPS[kind](x, hx, params)[0]
            torch.autograd.grad(output.sum(), leaves(x, hx, params), allow_unused=True)
            assert len(decided) == before + 1
            most = max(most, len(plans._decided))
    assert most == 8
