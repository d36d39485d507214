"""The error rule for every sample and dtype; long sequences; proof of who computed."""

from __future__ import annotations

import functools

import pytest
import torch
from rnn_plans import (
    ATEN,
    FUSED,
    KERNELS_ARE_COMPILED,
    OPS,
    Operators,
    arguments,
    forced,
    fused_serves,
)

import fastdl
from fastdl.dispatch import Choice
from fastdl.ops.rnn import backends
from fastdl.testing.checked_op import reports_of
from fastdl.testing.rnn import CELL_SAMPLES, NAMES, SAMPLES, Sample, plan_of, reports, run_eager, run_plan

pytestmark = pytest.mark.isa
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def cases(dtypes: tuple[torch.dtype, ...]) -> list:
    return [
        pytest.param(sample, dtype, id=f"{sample}-{str(dtype)[6:]}")
        for sample in (*SAMPLES, *CELL_SAMPLES)
        for dtype in dtypes
        if fused_serves(sample, dtype) and sample.decided(dtype)
    ]


@pytest.mark.parametrize(("sample", "dtype"), cases(DTYPES))
def test_error_rule(sample, dtype):
    for quantity, report in reports(sample, plan_of(sample, Choice(*FUSED), dtype), dtype).items():
        assert report.within_rule, f"{quantity}: {report}"


@pytest.mark.parametrize("sample", [s for s in SAMPLES if s.cell in ("lstm", "gru")], ids=str)
def test_inference_gives_what_training_gives(sample):
    """The input product may be done outside the kernel for training alone: other sums, the same numbers."""
    dtype = torch.float32
    q = sample.inputs(dtype)
    plans = [plan_of(sample, Choice(*FUSED), dtype, gradient=gradient) for gradient in (True, False)]
    trained, inferred = (
        backends.forward(plan, *q[:4], q.context, save)
        for plan, save in zip(plans, (True, False), strict=True)
    )
    for a, b in zip(trained[:3], inferred[:3], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_long_sequences(cell, dtype):
    """2000 steps: errors of a recurrence add up; judged per quantity like everything else."""
    sample = Sample(cell, 2000, 2, 8, 16, states=False)
    if not fused_serves(sample, dtype):
        pytest.skip(f"the kernels have no {dtype}")
    ours = [run_plan(sample, plan_of(sample, Choice(*FUSED), dtype), dtype, seed) for seed in range(2)]
    eager = [run_eager(sample, dtype, seed) for seed in range(2)]
    for quantity, report in reports_of(ours, eager, NAMES, dtype).items():
        assert report.within_rule, f"{quantity}: {report}"


@pytest.mark.parametrize("kind", OPS)
def test_the_fused_operators_run(kind):
    x, hx, params = arguments(kind, torch.float32)
    with forced(FUSED), Operators() as seen:
        OPS[kind](x, hx, params)[0].sum().backward()
    assert [n for n in seen.names if "fastdl" in n] == [
        "fastdl::rnn_sequence",
        "fastdl::rnn_sequence_backward",
    ]
    if KERNELS_ARE_COMPILED:
        explanation = fastdl.explain(kind, x, hx, params)
        assert explanation.backend == "cpu"


@pytest.mark.parametrize("kind", OPS)
def test_torchs_layer_runs_where_it_is_delegated_to(kind):
    x, hx, params = arguments(kind, torch.float64)
    with forced(ATEN), Operators() as seen:
        output = OPS[kind](x, hx, params)[0]
    assert not [n for n in seen.names if "fastdl" in n]
    with fastdl.backend("reference"):
        torch.testing.assert_close(output, OPS[kind](x, hx, params)[0])


@functools.cache
def every_reason() -> str:
    x, hx, params = arguments("lstm", torch.float64)
    return str(fastdl.explain("lstm", x.to("meta"), None, [p.to("meta") for p in params]))


@pytest.mark.parametrize(
    "word", ["cpu (fused)", "cpu (aten)", "cuda (fused)", "cuda (cudnn)", "triton (fused)"]
)
def test_explain_has_a_reason_for_every_candidate(word):
    assert f"not {word}" in every_reason()
