"""Every candidate that serves a GPU, CUDA and Triton, by the error rule over its samples. Skips without one."""

from __future__ import annotations

import pytest
import torch

from fastdl.dispatch import Candidate
from fastdl.testing.check import DTYPES, check_candidate, checked_ops
from fastdl.testing.checked_op import CheckedOp

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)

CASES = [
    pytest.param(op, candidate, id=f"{op.op}-{candidate.backend}-{candidate.algorithm}")
    for op in checked_ops()
    for candidate in op.candidates
    if candidate.backend in ("cuda", "triton")
]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize(("op", "candidate"), CASES)
def test_error_rule(op: CheckedOp, candidate: Candidate, dtype: torch.dtype) -> None:
    results = list(check_candidate(op, candidate, dtype, "cuda"))
    if not results:
        pytest.skip("no sample of the family is served by this candidate in this type")
    broken = [f"{r.quantity} of {r.sample}: {r.report}" for r in results if not r.ok]
    assert not broken, broken
