"""Large outputs ask for huge pages: the system gives them back page by page, each of which costs time again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import fastdl
from fastdl import _extension

SMAPS = Path("/proc/self/smaps")

pytestmark = [
    pytest.mark.skipif(not _extension.cpu.loaded, reason="the CPU kernels are not built"),
    pytest.mark.skipif(
        not SMAPS.exists() or not Path("/sys/kernel/mm/transparent_hugepage").exists(),
        reason="the system has no huge pages to ask for",
    ),
]


def asked_for_huge_pages(t: Tensor) -> bool:
    """Whether the mapping that holds the middle of `t` is marked so."""
    middle, inside = t.data_ptr() + t.nbytes // 2, False
    for line in SMAPS.read_text().splitlines():
        first, *rest = line.split()
        if "-" in first and not first.endswith(":"):
            begin, end = (int(address, 16) for address in first.split("-"))
            inside = begin <= middle < end
        elif inside and first == "VmFlags:":
            return "hg" in rest
    raise AssertionError("no mapping holds the tensor")


def test_a_large_output_asks_for_huge_pages():
    # beyond glibc's largest threshold, so that its memory is a mapping of its own
    x, weight = torch.randn(16, 3, 512, 512), torch.randn(16, 3, 3, 3)
    with fastdl.backend("cpu"):
        output = fastdl.ops.conv_relu_maxpool(x, weight, padding=1, pool_size=2)
    assert output.nbytes == 64 << 20
    assert asked_for_huge_pages(output)
