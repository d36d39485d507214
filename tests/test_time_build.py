"""The clock of the build: what it builds, with what, and when it fails."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from build_tools import time_build

ASKED = """import os, sys
assert sys.argv[1:] == ["build_ext", "--inplace"]
assert os.environ["CCACHE_DISABLE"] == "1" and os.environ["MAX_JOBS"] == "2"
assert [os.environ[f"FASTDL_{part}"] for part in ("CPU", "CUDA", "NATIVE")] == ["1", "0", "0"]
assert len(os.sched_getaffinity(0)) <= 2
assert sorted(os.listdir()) == ["csrc", "setup.py"] and os.listdir("csrc") == ["kernel.cpp"]
"""


@pytest.fixture
def tree(monkeypatch, tmp_path):
    """A repository with files that are tracked, not tracked and gone; a test writes its setup.py."""
    (tmp_path / "csrc").mkdir()
    for name in ("setup.py", "csrc/kernel.cpp", "gone.py", "built.so"):
        (tmp_path / name).touch()
    git = ["git", "-C", str(tmp_path)]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "setup.py", "csrc", "gone.py"], check=True)
    (tmp_path / "gone.py").unlink()
    monkeypatch.setattr(time_build, "ROOT", tmp_path)
    cores = os.sched_getaffinity(0)
    yield tmp_path
    os.sched_setaffinity(0, cores)


@pytest.mark.parametrize(("goal", "status"), [(60, 0), (0, 1)])
def test_the_tracked_files_are_built_from_clean(tree: Path, monkeypatch, capsys, goal, status):
    monkeypatch.setattr(time_build, "GOAL", goal)
    (tree / "setup.py").write_text(ASKED)
    assert time_build.main() == status
    assert capsys.readouterr().out.endswith(f"the goal is {goal} s\n")


def test_a_build_that_fails_has_no_time(tree: Path):
    (tree / "setup.py").write_text("raise SystemExit(3)")
    with pytest.raises(subprocess.CalledProcessError):
        time_build.main()
