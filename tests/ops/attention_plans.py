"""The plans of attention that can run here, for the tests of every aspect."""

from __future__ import annotations

import pytest
import torch

from fastdl import _extension
from fastdl.dispatch import Choice
from fastdl.ops.attention import backends
from fastdl.testing.attention import SAMPLES, Sample

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def flash_plan(sample: Sample) -> backends.Plan:
    """The CPU kernels' plan of a sample; skips the test where they are not loaded."""
    if not _extension.cpu.loaded:
        pytest.skip(f"CPU kernels are not loaded: {_extension.cpu.error}")
    return backends.make_plan(Choice("cpu", "flash"), sample.as_call())


def named(samples: tuple[Sample, ...] = SAMPLES) -> list:
    """Samples as parameters with their names as ids."""
    return [pytest.param(sample, id=str(sample)) for sample in samples]
