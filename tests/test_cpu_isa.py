"""Every CPU instruction set this machine has, in a process of its own: it is picked once, when the kernels load."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastdl import _extension
from tests.kernel_tests import KERNEL_TESTS

OPS = Path(__file__).parent / "ops"
# What an instruction set is tested by, where not by everything: AVX512-BF16 has dot products of bfloat16 of its own,
# and all other kernels are those of AVX-512.
PARTS = {"avx512bf16": "bfloat16 or instruction_set"}


def runnable() -> list:
    """The instruction sets below the best, which this process itself uses; missing ones skip by name."""
    if not _extension.cpu.loaded:
        reason = f"CPU kernels are not loaded: {_extension.cpu.error}"
        return [pytest.param("any", marks=pytest.mark.skip(reason=reason))]
    best = torch.ops.fastdl._best_cpu_isa()
    return [
        pytest.param(
            isa, marks=[pytest.mark.skip(reason=f"{isa}: this CPU does not have it")] if i > best else []
        )
        for i, isa in enumerate(_extension.CPU_ISAS)
        if i != best
    ]


@pytest.mark.long
@pytest.mark.early
@pytest.mark.skipif(
    "FASTDL_CPU_ISA" in os.environ, reason="FASTDL_CPU_ISA chooses one instruction set for this run"
)
@pytest.mark.parametrize("isa", runnable())
def test_kernels_at(isa):
    """Everything marked `isa`, or its part; one test asserts that the instruction set in use is the one asked for."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")} | {
        "FASTDL_CPU_ISA": isa
    }
    result = subprocess.run(
        [sys.executable, *KERNEL_TESTS, "-k", PARTS.get(isa, ""), str(OPS)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, result.stdout[-6000:]
    assert f"in use {isa}," in result.stdout
    assert int(re.search(r"(\d+) passed", result.stdout).group(1)) > 400


def test_the_best_instruction_set_is_the_default():
    if not _extension.cpu.loaded:
        pytest.skip(f"CPU kernels are not loaded: {_extension.cpu.error}")
    if "FASTDL_CPU_ISA" in os.environ:
        pytest.skip("FASTDL_CPU_ISA chooses one instruction set for this run")
    assert torch.ops.fastdl._cpu_isa() == torch.ops.fastdl._best_cpu_isa()


def test_the_best_instruction_set_is_what_the_cpu_reports():
    """Against the kernel's own list of the CPU's features."""
    flags = Path("/proc/cpuinfo")
    if not _extension.cpu.loaded or not flags.exists() or "flags" not in flags.read_text():
        pytest.skip("needs the CPU kernels, and the flags in /proc/cpuinfo")
    have = set(re.search(r"^flags\s*:(.*)$", flags.read_text(), re.MULTILINE).group(1).split())
    needs = [
        set(),
        {"avx2", "fma"},
        {"avx512f", "avx512bw", "avx512vl", "avx512dq"},
        {"avx512_bf16"},
        {"amx_tile", "amx_bf16"},
    ]
    expected = 0
    while expected + 1 < len(needs) and needs[expected + 1] <= have:
        expected += 1
    assert _extension.CPU_ISAS[torch.ops.fastdl._best_cpu_isa()] == _extension.CPU_ISAS[expected]
