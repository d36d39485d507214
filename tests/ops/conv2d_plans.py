"""The ways conv2d can be computed, each forced through the public function."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from forced_choice import only
from torch import Tensor

import fastdl
from fastdl import _extension
from fastdl.dispatch import Choice
from fastdl.ops import products
from fastdl.ops.conv2d import packed_weights
from fastdl.ops.conv2d.packed_weights import PackedWeights
from fastdl.testing.conv2d import SAMPLES, Sample

op = importlib.import_module("fastdl.ops.conv2d.op")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
REFERENCE = Choice("reference", "torch")
TORCH_ACTIVATIONS = {
    None: lambda y: y,
    "relu": torch.relu,
    "relu6": F.relu6,
    "silu": F.silu,
    "hardswish": F.hardswish,
    "gelu": F.gelu,
    "gelu_tanh": lambda y: F.gelu(y, approximate="tanh"),
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}
COMPOSED, WINOGRAD, IMPLICIT_GEMM, DEPTHWISE, ONEDNN, PRODUCT = (
    Choice("cpu", algorithm)
    for algorithm in ("composed", "winograd", "implicit_gemm", "depthwise", "onednn", "product")
)
# Those for images of any size without groups; DEPTHWISE has tests of its own besides.
KERNELS = (COMPOSED, WINOGRAD, IMPLICIT_GEMM, *((ONEDNN,) if packed_weights.AVAILABLE else ()))
PLANS = (REFERENCE, *KERNELS)


def name(plan: Choice) -> str:
    return "-".join(plan)


def serves(plan: Choice, sample: Sample, dtype: torch.dtype) -> bool:
    """Whether the kernel's contract covers the sample, fast or not."""
    if plan == IMPLICIT_GEMM:
        return dtype is torch.float32 and "groups" not in sample.kwargs and not sample.channels_last
    if plan == DEPTHWISE:
        whole = dtype is not torch.float64 and not sample.channels_last
        return whole and sample.kwargs.get("groups") == sample.C
    if plan == PRODUCT:
        return (sample.H, sample.W, sample.K, sample.kwargs) == (1, 1, (1, 1), {})
    if plan == ONEDNN:
        return dtype is not torch.float64 and not products.slow_in_torch(torch.empty(0, dtype=dtype))
    if plan != WINOGRAD:
        return True
    return dtype is not torch.float64 and sample.K == (3, 3) and not sample.kwargs.keys() - {"padding"}


def skip_unless_it_serves(plan: Choice, sample: Sample, dtype: torch.dtype = torch.float32) -> None:
    if not serves(plan, sample, dtype):
        pytest.skip(f"{name(plan)} does not take this sample in {dtype}")


@contextlib.contextmanager
def forced(plan: Choice) -> Iterator[None]:
    """The dispatcher sees this plan alone, whatever its candidate says about speed; the reference is refused."""
    if plan == REFERENCE:
        with fastdl.backend("reference"):
            yield
        return
    if not _extension.cpu.loaded:
        pytest.skip(f"CPU kernels are not loaded: {_extension.cpu.error}")
    seen = PackedWeights._is_seen_again
    PackedWeights._is_seen_again = lambda *_: True  # also what is called once
    try:
        with only("conv2d", plan, op._planned):
            yield
    finally:
        PackedWeights._is_seen_again = seen


def cases(plans: tuple[Choice, ...], dtypes: tuple[torch.dtype, ...], samples: tuple[Sample, ...] = SAMPLES):
    """pytest parameters (plan, sample, dtype) for everything the plans serve."""
    return [
        pytest.param(plan, sample, dtype, id=f"{name(plan)}-{sample}-{str(dtype)[6:]}")
        for plan in plans
        for sample in samples
        for dtype in dtypes
        if serves(plan, sample, dtype)
    ]


def eager(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, scale: Tensor | None = None,
    residual: Tensor | None = None, activation: str | None = None, **conv: object,
) -> Tensor:  # fmt: skip
    """The composition in plain torch, written without the package."""
    y = F.conv2d(x, weight, bias if scale is None else None, **conv)
    if scale is not None:
        y = y * scale.reshape(-1, 1, 1)
        y = y if bias is None else y + bias.reshape(-1, 1, 1)
    y = y if residual is None else y + residual
    return TORCH_ACTIVATIONS[activation](y)


def call(op, sample: Sample, tensors: tuple[Tensor | None, ...]) -> Tensor:
    """`op` of x, weight, bias, scale and residual as the sample says."""
    x, weight, bias, scale, residual = tensors
    return op(x, weight, bias, scale=scale, residual=residual, activation=sample.activation, **sample.kwargs)


def tensors_of(
    sample: Sample, dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[Tensor | None, ...]:
    return (*sample.inputs(dtype, seed), *sample.epilogue(dtype, seed)[:2])
