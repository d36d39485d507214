"""The gate (.ci/run) passes only where every step has run: nothing missing is passed over, nothing hangs for ever."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from build_tools import toolchain

ROOT = Path(__file__).parents[1]
GATE, BUILD_TOOLS = ROOT / ".ci" / "run", ROOT / "build_tools"


def program(path: Path, body: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def toolkit(home: Path, *left_out: str) -> Path:
    """What looks like a CUDA toolkit."""
    for file in {"bin/nvcc", "include/cuda_runtime.h"} - set(left_out):
        program(home / file, f"echo '#$ TOP={home}/bin/..' >&2")
    return home


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """An environment without a CUDA toolkit; /usr/local/cuda is out of sight."""
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    usual = Path.is_file
    monkeypatch.setattr(
        Path, "is_file", lambda path: not str(path).startswith("/usr/local/cuda") and usual(path)
    )


@pytest.mark.parametrize("variable", ["CUDA_HOME", "CUDA_PATH", "PATH"])
@pytest.mark.parametrize("left_out", ["", "bin/nvcc", "include/cuda_runtime.h"])
def test_a_toolkit_is_found_where_it_is_named_and_whole(bare, monkeypatch, tmp_path, variable, left_out):
    assert toolchain.find_cuda_home() is None
    home = toolkit(tmp_path / "cuda", left_out)
    monkeypatch.setenv(variable, f"{home}/bin" if variable == "PATH" else str(home))
    assert toolchain.find_cuda_home() == (None if left_out else str(home))


def test_nvcc_on_the_path_may_be_a_wrapper(bare, monkeypatch, tmp_path):
    home = toolkit(tmp_path / "cuda")
    wrapper = program(tmp_path / "elsewhere" / "nvcc", f'exec {home}/bin/nvcc "$@"')
    monkeypatch.setenv("PATH", str(wrapper.parent))
    assert toolchain.find_cuda_home() == str(home)


def test_the_static_checks_fail_without_what_they_need(bare, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["check"])
    monkeypatch.setattr(sys, "path", [str(BUILD_TOOLS), *sys.path])
    monkeypatch.setitem(sys.modules, "toolchain", toolchain)
    with pytest.raises(SystemExit, match="no CUDA toolkit .* in CUDA_HOME, .* install one .*CUDA_HOME"):
        runpy.run_path(str(BUILD_TOOLS / "check_cuda_static.py"), run_name="__main__")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="triton is not installed: pip install"):
        runpy.run_path(str(BUILD_TOOLS / "compile_triton.py"), run_name="__main__")


def gate(folder: Path, **programs: str) -> tuple[int, list[str], str]:
    """(exit status, what make was asked for, stderr) of the gate with these programs in place of the real ones."""
    if not GATE.exists():
        pytest.skip("an archive of the sources has no .ci")
    log = folder / "asked"
    for name, body in {"make": "true", **programs}.items():
        program(folder / "bin" / name, f'echo {name} "$@" >>{log}\n{body}')
    environment = os.environ | {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
    done = subprocess.run([GATE], env=environment, capture_output=True, text=True, timeout=60)
    asked = [line.removeprefix("make ") for line in log.read_text().splitlines() if line.startswith("make ")]
    return done.returncode, asked, done.stderr


def test_the_gate_asks_for_every_step(tmp_path):
    assert gate(tmp_path) == (0, ["setup", "lint", "check-static", "test"], "")


def test_the_gate_ends_with_the_first_step_that_fails(tmp_path):
    status, asked, said = gate(tmp_path, make='[ "$1" != check-static ] || exit 2')
    assert (status, asked, said) == (2, ["setup", "lint", "check-static"], "")


def test_the_gate_names_a_step_that_hangs(tmp_path):
    """Its five minutes are a second here."""
    hangs = '[ "$1" != lint ] || sleep 60'
    shorter = f'shift; seconds=$(($1 / 300)); shift; exec {shutil.which("timeout")} "$seconds" "$@"'
    status, asked, said = gate(tmp_path, make=hangs, timeout=shorter)
    assert (status, asked) == (124, ["setup", "lint"])
    assert re.match(r"error: lint was stopped after \d s; it has 5 minutes", said)
