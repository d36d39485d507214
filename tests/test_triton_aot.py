"""The Triton kernels compile for GPUs that are not here: on tensor cores, without spills, within shared memory."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("triton", reason="triton is not installed")

SCRIPT = Path(__file__).parents[1] / "build_tools" / "compile_triton.py"


def _compile(*arguments: str) -> str:
    # The interpreter's variable would turn the compiler off.
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
    return run.stdout


@pytest.mark.long
@pytest.mark.parametrize("arch", ["80", "90"])
def test_the_kernels_of_a_pooled_block(arch: str):
    said = _compile(
        "--arch", arch, "--kernel", "bf16 ieee C=64 C_out=128 3x3 pool 2", "pool bf16", "sum_parts bf16"
    )
    assert "8 compiled, 0 failed" in said


@pytest.mark.long
@pytest.mark.parametrize("arch", ["80", "90"])
def test_the_kernels_of_a_first_layer(arch: str):
    said = _compile("--arch", arch, "--kernel", "C=3 C_out=32 3x3 pool 2")
    assert "9 compiled, 0 failed" in said


@pytest.mark.long
@pytest.mark.parametrize("arch", ["80", "90"])
def test_the_pass_after_a_convolution(arch: str):
    assert "5 compiled, 0 failed" in _compile("--arch", arch, "--kernel", "conv2d epilogue bf16")


@pytest.mark.slow
def test_every_kernel_for_every_architecture():
    assert ", 0 failed" in _compile("--all")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    specification = importlib.util.spec_from_file_location("compile_triton", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_the_gates_can_fail(script: ModuleType):
    case = script.Case("kernel", None, {}, {}, frozenset(), 4, 2, tensor_cores=True)
    good = script.Result("kernel", 80, 128, 0, 1024, 16, 4, 1.0, None)
    assert script.failure(case, good, "") is None
    assert "tensor-core" in script.failure(case, good._replace(tensor_core=0), "")
    assert script.failure(case._replace(tensor_cores=False), good._replace(tensor_core=0), "") is None
    assert "local" in script.failure(case, good._replace(spilled=8), "")
    assert "local" in script.failure(case, good, "st.local.b32 [%r1], %r2;")
    assert "shared" in script.failure(case, good._replace(shared=164 << 10), "")
