"""linear on a GPU by the error rule: the CUDA passes around torch's product, and Triton. Skips without one."""

from __future__ import annotations

import pytest
import torch

from fastdl import _extension
from fastdl.dispatch import Choice
from fastdl.ops.linear import triton_ops
from fastdl.ops.linear.backends import make_plan
from fastdl.testing.checked_op import reports_of
from fastdl.testing.error_rule import SEEDS, is_ok
from fastdl.testing.linear import NAMES, SAMPLES, Sample, run_eager, run_plan

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)

PLANS = (Choice("cuda", "composed"), Choice("triton", "composed"), Choice("triton", "fused"))
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
LARGE = Sample((300,), 700, 516, "gelu", dropout_p=0.2)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("sample", [*SAMPLES, LARGE], ids=str)
@pytest.mark.parametrize("choice", PLANS, ids="-".join)
def test_error_rule(choice: Choice, sample: Sample, dtype: torch.dtype) -> None:
    if choice.backend == "cuda" and _extension.cuda.error:
        pytest.skip(f"CUDA kernels are not loaded: {_extension.cuda.error}")
    if choice.backend == "triton" and (not triton_ops.INSTALLED or dtype is torch.float64):
        pytest.skip("triton is not installed, or has no kernel for float64")
    plan = make_plan(choice, sample.activation, sample.dropout_p)
    ours = [run_plan(sample, plan, dtype, seed, device="cuda") for seed in SEEDS]
    eager = [run_eager(sample, dtype, seed, device="cuda") for seed in SEEDS]
    for name, report in reports_of(ours, eager, NAMES, dtype).items():
        assert is_ok(report, choice.algorithm, dtype), f"{name}: {report}"
