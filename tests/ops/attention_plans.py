"""The plans of attention that can run here, for the tests of every aspect."""

from __future__ import annotations

import pytest
import torch

from fastdl import _extension
from fastdl.dispatch import Choice
from fastdl.ops.attention import backends
from fastdl.ops.attention.refusals import FEWEST_ROWS
from fastdl.testing.attention import SAMPLES, Sample

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def flash_plan(sample: Sample) -> backends.Plan:
    """The CPU kernels' plan of a sample; skips the test where they are not loaded."""
    if not _extension.cpu.loaded:
        pytest.skip(f"CPU kernels are not loaded: {_extension.cpu.error}")
    return backends.make_plan(Choice("cpu", "flash"), sample.as_call())


def decode_plan(sample: Sample) -> backends.Plan:
    """The plan for few query rows."""
    plan = flash_plan(sample)
    return backends.make_plan(Choice("cpu", "decode"), plan.call)


def has_few_rows(sample: Sample) -> bool:
    """Whether the kernel for few rows may serve the sample."""
    longest = max(sample.lengths_q, default=sample.L_q)
    return sample.H // (sample.H_kv or sample.H) * longest < FEWEST_ROWS


def named(samples: tuple[Sample, ...] = SAMPLES) -> list:
    """Samples as parameters with their names as ids."""
    return [pytest.param(sample, id=str(sample)) for sample in samples]
