"""The ways conv_relu_maxpool can be computed, each forced through the public function, with proof that it ran."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch
from forced_choice import only
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import fastdl
from fastdl import _extension
from fastdl.ops.conv_relu_maxpool import refusals
from fastdl.ops.conv_relu_maxpool.geometry import Geometry
from fastdl.testing.conv_relu_maxpool import SAMPLES, Sample

OP = "conv_relu_maxpool"
op = importlib.import_module("fastdl.ops.conv_relu_maxpool.op")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# bfloat16 by AMX tiles
IMPLICIT_GEMM_DTYPES = (torch.float32, torch.bfloat16) if _extension.cpu_isa() == "amx" else (torch.float32,)


class Plan(NamedTuple):
    backend: str
    algorithm: str

    def __str__(self) -> str:
        return self.backend if self.backend == "reference" else f"{self.backend}-{self.algorithm}"

    @property
    def raw_operators(self) -> bool:
        return self.backend != "reference"

    @property
    def exact_products(self) -> bool:
        """Whether every sum is one of plain products: exact on small integers, ties stay ties."""
        return self.algorithm != "winograd"

    def skip_reason(self) -> str | None:
        if self.backend == "cpu" and not _extension.cpu.loaded and self not in WITHOUT_KERNELS:
            return f"CPU kernels are not loaded: {_extension.cpu.error}"
        return None

    def skip_unless_it_takes(self, dtype: torch.dtype) -> None:
        if self == IMPLICIT_GEMM and dtype not in IMPLICIT_GEMM_DTYPES:
            pytest.skip(f"{self} does not take {dtype}")

    def serves(self, sample: Sample, dtype: torch.dtype) -> bool:
        """Whether the kernel's contract (conv_relu_maxpool_cpu.h) covers the sample, fast or not."""
        x, weight, bias = (None if t is None else t.to("meta") for t in sample.inputs(dtype))
        return self.serves_call(dtype, weight, sample.geometry(x, weight, bias))

    def serves_call(self, dtype: torch.dtype, weight: Tensor, g: Geometry) -> bool:
        if self.algorithm in ("torch", "composed"):
            return True
        if dtype is torch.float64 or g.groups != 1:
            return False
        if self.algorithm == "implicit_gemm":
            taps = weight.shape[2] * weight.shape[3]
            return dtype in IMPLICIT_GEMM_DTYPES and (dtype is torch.bfloat16 or taps <= 256)
        if self.algorithm == "direct":
            # one running sum per output: eager's blocked sums are more exact over long ones
            return weight[0].numel() <= 256
        pool = (g.pool_size, g.pool_stride, g.pool_padding, g.pool_dilation)
        return (
            tuple(weight.shape[2:]) == (3, 3)
            and (g.stride, g.dilation) == ((1, 1), (1, 1))
            and (not g.pool_size or pool == ((2, 2), (2, 2), (0, 0), (1, 1)))
        )


REFERENCE = Plan("reference", "torch")
COMPOSED, DIRECT, WINOGRAD, IMPLICIT_GEMM = (
    Plan("cpu", a) for a in ("composed", "direct", "winograd", "implicit_gemm")
)
# Where nothing was compiled the raw operators are their Python reference: "winograd" there is the whole block
# in one operator, "composed" its pieces.
WITHOUT_KERNELS = () if _extension.cpu.loaded else (COMPOSED, WINOGRAD)
KERNELS = tuple(
    p
    for p in (COMPOSED, DIRECT, WINOGRAD, IMPLICIT_GEMM)
    if p in [(c.backend, c.algorithm) for c in refusals.CANDIDATES]
)
PLANS = (REFERENCE, *KERNELS)


@contextlib.contextmanager
def forced(plan: Plan) -> Iterator[None]:
    """The dispatcher sees this plan alone, whatever its candidate says about speed; the reference is refused."""
    if (reason := plan.skip_reason()) is not None:
        pytest.skip(reason)
    if plan == REFERENCE:
        with fastdl.backend("reference"):
            yield
        return
    with only(OP, plan, op._planned):
        yield


def cases(plans: tuple[Plan, ...], dtypes: tuple[torch.dtype, ...], samples=SAMPLES) -> list:
    """pytest parameters (plan, sample, dtype) for everything the plans serve."""
    return [
        pytest.param(plan, sample, dtype, id=f"{plan}-{sample}-{str(dtype)[6:]}")
        for plan in plans
        for sample in samples
        for dtype in dtypes
        if plan.serves(sample, dtype)
    ]


class Operators(TorchDispatchMode):
    """Records the names of all operators that run inside, below autograd."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def eager(x: Tensor, weight: Tensor, bias: Tensor | None = None, **kwargs) -> Tensor | tuple[Tensor, Tensor]:
    """The composition in plain torch, written without the package."""
    conv = {k: kwargs[k] for k in ("stride", "padding", "dilation", "groups") if k in kwargs}
    y = torch.relu(torch.nn.functional.conv2d(x, weight, bias, **conv))
    if kwargs.get("pool_size") is None:
        return y
    pool = {
        "stride": kwargs.get("pool_stride"),
        "padding": kwargs.get("pool_padding", 0),
        "dilation": kwargs.get("pool_dilation", 1),
        "ceil_mode": kwargs.get("ceil_mode", False),
        "return_indices": kwargs.get("return_indices", False),
    }
    return torch.nn.functional.max_pool2d(y, kwargs["pool_size"], **pool)
