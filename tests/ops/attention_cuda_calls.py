"""Calls of the raw attention operators for the emulated CUDA kernels, and what may be said of their results."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastdl.ops.attention import registration
from fastdl.testing.attention import Sample

# Of the largest value of a result: fp32 rounds sums of some hundred products, half types scores' powers as well.
TOLERANCES = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCES, ids=lambda dtype: str(dtype)[6:])


def arguments_of(sample: Sample, dtype: torch.dtype) -> tuple:
    q, k, v, context = sample.inputs(dtype)
    call = sample.as_call()
    return (q, k, v, *context, call.packed_integers(), call.packed_numbers())


def wide(arguments: tuple) -> tuple:
    """Tensors of the dtype of q in fp64."""
    return tuple(
        a.double() if isinstance(a, Tensor) and a.dtype == arguments[0].dtype else a for a in arguments
    )


def assert_near(ours: Tensor, truth: Tensor, dtype: torch.dtype) -> None:
    finite = truth.isfinite()
    assert torch.equal(ours.isfinite(), finite)
    size = truth[finite].abs().max().item() if finite.any() else 0.0
    torch.testing.assert_close(ours.double(), truth.double(), rtol=0, atol=TOLERANCES[dtype] * max(size, 1.0))


def backward_arguments_of(arguments: tuple) -> tuple:
    """Of the exact output and lse, rounded to the dtype."""
    output, lse = registration.attention(*wide(arguments))
    generator = torch.Generator().manual_seed(5)
    output = output.to(arguments[0].dtype)
    grad_output = torch.randn(output.shape, generator=generator).to(output.dtype)
    grad_lse = torch.randn(lse.shape, generator=generator).double().masked_fill(lse == -torch.inf, 0)
    needs = (arguments[4] is not None, arguments[6] is not None)
    return grad_output, grad_lse, *arguments[:3], output, lse, *arguments[3:], *needs
