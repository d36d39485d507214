"""Runs tests/triton by Triton's interpreter: the variable that turns it on counts for a whole process."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

FILES = sorted(path.name for path in (Path(__file__).parent / "triton").glob("test_*.py"))


@pytest.mark.long
@pytest.mark.early
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize("name", FILES)
def test_kernels_in_the_interpreter(name: str):
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--durations=5"]
    run = subprocess.run(
        [*command, str(Path(__file__).parent / "triton" / name)],
        env={**inherited, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
    assert " passed" in run.stdout
