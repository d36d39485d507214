"""The ways linear can be computed, each forced through the public function, with proof that it ran."""

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
from fastdl.ops.linear.activations import activate
from fastdl.testing.linear import SAMPLES, Sample

op = importlib.import_module("fastdl.ops.linear.op")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
REFERENCE, COMPOSED, DOT = Choice("reference", "torch"), Choice("cpu", "composed"), Choice("cpu", "dot")
KERNELS = (COMPOSED, DOT)
PLANS = (REFERENCE, *KERNELS)


def name(plan: Choice) -> str:
    return "-".join(plan)


def serves(plan: Choice, dtype: torch.dtype) -> bool:
    return plan != DOT or dtype is not torch.float64


@contextlib.contextmanager
def forced(plan: Choice) -> Iterator[None]:
    """The dispatcher sees this plan alone, whatever its candidate says about speed; the reference is refused."""
    if plan == REFERENCE:
        with fastdl.backend("reference"):
            yield
        return
    if not _extension.cpu.loaded:
        pytest.skip(f"CPU kernels are not loaded: {_extension.cpu.error}")
    with only("linear", plan, op._planned):
        yield


def cases(plans: tuple[Choice, ...], dtypes: tuple[torch.dtype, ...], samples: tuple[Sample, ...] = SAMPLES):
    """pytest parameters (plan, sample, dtype) for everything the plans serve."""
    return [
        pytest.param(plan, sample, dtype, id=f"{name(plan)}-{sample}-{str(dtype)[6:]}")
        for plan in plans
        for sample in samples
        for dtype in dtypes
        if serves(plan, dtype)
    ]


def eager(x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None) -> Tensor:
    return activate(F.linear(x, weight, bias), activation)
