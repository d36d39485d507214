"""The kernels of attention on a GPU by the error rule. Skips without one. Backends: cuda, triton."""

from __future__ import annotations

import pytest
import torch

import fastdl
from fastdl import _extension
from fastdl.dispatch import Choice
from fastdl.ops.attention import registration, triton_ops
from fastdl.ops.attention.backends import make_plan
from fastdl.ops.attention.refusals import MOST_DECODED, MOST_KEYS
from fastdl.testing.attention import SAMPLES, Sample, algorithm, reports
from fastdl.testing.error_rule import is_ok

if not torch.cuda.is_available() or _extension.cuda.error:
    pytest.skip("needs a GPU and the CUDA kernels", allow_module_level=True)

EARLY = torch.cuda.get_device_capability() < (8, 0)
# Every head size, whole and padded; blocks of queries and tiles of keys by the dozen.
LARGE = (
    Sample(H=4, D=64, B=2, L_q=1000, L_k=1000, call=dict(causal="top_left")),
    Sample(H=4, H_kv=2, D=128, L_q=700, L_k=900, bias=(1, 1, 700, 900)),
    Sample(H=2, D=96, L_q=500, L_k=300, call=dict(dropout_p=0.2)),
    Sample(H=2, D=256, D_v=200, L_q=300, L_k=500, call=dict(window=(100, 20))),
)


# Few queries: keys in hundreds of ranges, and in one where sequences fill the device.
DECODED = (
    *(sample for sample in SAMPLES if max(sample.L_q, *sample.lengths_q, 0) <= MOST_DECODED),
    Sample(H=8, H_kv=2, D=128, L_q=1, L_k=20000, call=dict(causal="bottom_right")),
    Sample(H=4, D=64, L_q=16, L_k=3000, bias=(1, 4, 16, 3000), sink=True),
    Sample(H=16, H_kv=4, D=256, B=40, L_q=4, L_k=500),
)
# All keys of a head in one block; heads that fill the device.
SHORT = (
    *(sample for sample in SAMPLES if not sample.lengths_q and sample.L_k <= MOST_KEYS and sample.D <= 64),
    Sample(H=8, D=64, B=64, L_q=128, L_k=128),
    Sample(H=8, D=64, B=64, L_q=200, L_k=100, call=dict(causal="bottom_right", dropout_p=0.1)),
)
# Multiples of 8 up to 128, nothing packed, no dropout: some tiles of keys, ragged and whole, every mask.
HOPPER = (
    *(
        s
        for s in (*SAMPLES, *LARGE)
        if not (s.lengths_q or s.call.get("dropout_p") or s.D % 8 or s.D_v % 8 or max(s.D, s.D_v) > 128)
    ),
    Sample(H=8, H_kv=2, D=128, B=3, L_q=1000, L_k=1500, call=dict(causal="bottom_right", softcap=3.0)),
    Sample(H=4, D=64, D_v=128, B=2, L_q=640, L_k=2048, call=dict(window=(300, 50))),
)
# Triton serves all samples itself, which test_check_gpu.py holds to the rule.
CASES = [
    *((sample, Choice("cuda", "flash")) for sample in (*SAMPLES, *LARGE)),
    *((sample, Choice("cuda", "decode")) for sample in DECODED),
    *((sample, Choice("cuda", "short")) for sample in SHORT),
    *((sample, Choice("cuda", "hopper")) for sample in HOPPER),
    *((sample, Choice("triton", "flash")) for sample in LARGE),
    *((sample, Choice("triton", "decode")) for sample in DECODED[-3:]),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize(
    ("sample", "choice"), CASES, ids=lambda c: "-".join(c) if isinstance(c, Choice) else str(c)
)
def test_error_rule(sample: Sample, choice: Choice, dtype: torch.dtype):
    if EARLY and (choice.algorithm == "short" or dtype is torch.bfloat16 or max(sample.D, sample.D_v) > 128):
        pytest.skip("needs compute capability 8.0")
    if choice.algorithm == "hopper" and (
        dtype is torch.float32 or torch.cuda.get_device_capability() != (9, 0)
    ):
        pytest.skip("needs compute capability 9.0 and a half type")
    if choice.backend == "triton" and not triton_ops.INSTALLED:
        pytest.skip("triton is not installed")
    plan = make_plan(choice, sample.as_call())
    for quantity, report in reports(sample, plan, dtype, "cuda").items():
        assert is_ok(report, algorithm(plan, quantity), dtype), f"{quantity}: {report}"


def test_dropout_keeps_the_weights_that_the_definition_keeps():
    sample = Sample(H=2, D=16, B=2, L_q=70, L_k=130, call=dict(dropout_p=0.5))
    q, k, v, context = sample.inputs(torch.float32)
    k = torch.zeros_like(k)  # equal weights: each output element counts what was kept
    call = sample.as_call()
    numbers = (call.packed_integers(), call.packed_numbers())
    expected, _ = registration.attention(q, k, v, *context, *numbers)
    on_gpu = (None if t is None else t.cuda() for t in (q, k, v, *context))
    found, _ = torch.ops.fastdl.attention(*on_gpu, *numbers)
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-5, atol=1e-5)


def test_the_same_bits_again_in_a_graph_and_without_waiting():
    q, k, v = (torch.randn(2, 4, 200, 64, device="cuda", dtype=torch.float16) for _ in range(3))

    def step() -> tuple[torch.Tensor, ...]:
        inputs = [t.detach().requires_grad_() for t in (q, k, v)]
        with fastdl.backend("cuda"):
            output = fastdl.ops.attention(*inputs, softcap=5.0, causal="top_left")
            with torch.no_grad():
                decoded = fastdl.ops.attention(q[:, :, :1], k, v, softcap=5.0)
        return decoded, output, *torch.autograd.grad(output.float().square().sum(), inputs)

    expected = step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        again = step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    graph.replay()
    for three in zip(expected, again, captured, strict=True):
        assert torch.equal(three[0], three[1])
        assert torch.equal(three[0], three[2])


def test_this_backend_serves_what_torch_does_not():
    q = torch.randn(1, 2, 20, 8, device="cuda")
    found = fastdl.explain("attention", q, q, q, softcap=2.0)
    assert (found.backend, found.algorithm) == ("cuda", "flash" if EARLY else "short")
    found = fastdl.explain("attention", q[:, :, :3], q, q, softcap=2.0)
    assert (found.backend, found.algorithm) == ("cuda", "decode")
    found = fastdl.explain("attention", q, q, q)
    assert (found.backend, found.algorithm) == ("cuda", "sdpa")
    assert any("never timed" in reason for *_, reason in found.refused)
