"""The house keeps its order: the mirror of families, short files, and what may stand only in one place."""

from __future__ import annotations

import ast
import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = {".py", ".h", ".cpp", ".cu", ".cuh", ".sh"}
MOST_LINES = 400


def tracked() -> list[str]:
    """Paths git knows, or, in an unpacked archive, every file that a build does not make."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode == 0 and listed.stdout:
        return [path for path in listed.stdout.splitlines() if (ROOT / path).is_file()]
    skipped = {"build", "dist", "__pycache__", ".git", ".venv", "runs"}
    paths = (path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file())
    return [str(path) for path in paths if not skipped & set(path.parts) and path.suffix != ".so"]


FILES = tracked()
SOURCES = [path for path in FILES if Path(path).suffix in CODE]


def lines_matching(pattern: str, files: list[str]) -> list[str]:
    found = []
    for path in files:
        for number, line in enumerate((ROOT / path).read_text(errors="replace").splitlines(), 1):
            if re.search(pattern, line):
                found.append(f"{path}:{number}: {line.strip()[:100]}")
    return found


def under(folder: str, *suffixes: str) -> list[str]:
    return [path for path in SOURCES if path.startswith(folder) and (not suffixes or path.endswith(suffixes))]


def families() -> set[str]:
    return {path.split("/")[2] for path in FILES if re.fullmatch(r"fastdl/ops/\w+/op\.py", path)}


def folders() -> set[str]:
    """The families, and what has raw operators alone, of which layers are made."""
    return {path.split("/")[2] for path in FILES if re.fullmatch(r"fastdl/ops/\w+/schema\.py", path)}


def test_there_is_something_to_check():
    assert families() >= {"conv_relu_maxpool"}
    assert len(SOURCES) > 80


@pytest.mark.parametrize("family", sorted(families()))
def test_a_family_has_its_place_everywhere(family):
    for pattern in (
        rf"csrc/ops/{family}/{family}\.h",
        rf"csrc/ops/{family}/{family}_torch\.cpp",
        rf"fastdl/ops/{family}/reference\.py",
        rf"fastdl/ops/{family}/schema\.py",
        rf"fastdl/testing/{family}\.py",
        rf"tests/ops/test_{family}(_\w+)?\.py",
        rf"benchmarks/ops/bench_{family}\.py",
    ):
        assert any(re.fullmatch(pattern, path) for path in FILES), f"nothing is called {pattern}"


@pytest.mark.parametrize(
    ("folder", "pattern"),
    [
        ("csrc/ops", r"csrc/ops/(\w+)/"),
        ("tests/ops", r"tests/ops/test_(\w+)\.py"),
        ("benchmarks/ops", r"benchmarks/ops/(?:bench|grid)_(\w+)\.py"),
    ],
)
def test_nothing_is_named_after_nothing(folder, pattern):
    names = {match[1] for path in FILES if (match := re.match(pattern, path))}
    assert names, f"nothing in {folder}"
    strangers = {name for name in names if not any(name.startswith(folder) for folder in folders())}
    assert not strangers


def test_test_files_have_names_of_their_own():
    """pytest imports them by their base name."""
    names = Counter(Path(path).name for path in under("tests/", ".py") if Path(path).name != "conftest.py")
    assert [name for name, count in names.items() if count > 1] == []


def test_no_file_is_longer_than_it_should_be():
    lengths = {path: len((ROOT / path).read_text(errors="replace").splitlines()) for path in SOURCES}
    assert {path: n for path, n in lengths.items() if n > MOST_LINES} == {}


def test_no_drawers_for_odds_and_ends():
    assert [p for p in FILES if re.search(r"(^|[/_.])(utils?|helpers?|misc|common_?stuff)([/_.]|$)", p)] == []


def test_torch_is_included_by_its_glue_alone():
    allowed = re.compile(r"(_torch\.cpp|torch_glue\.h|_args\.h)$")
    others = [path for path in under("csrc/") if not allowed.search(path)]
    assert lines_matching(r'#\s*include\s*[<"](torch|ATen|c10)/', others) == []


def test_every_cpu_operator_is_compiled():
    listed = re.findall(r'#include "(\S+)"', (ROOT / "csrc" / "cpu_operators.cpp").read_text())
    present = [path.removeprefix("csrc/") for path in under("csrc/", "_torch.cpp")]
    assert sorted(listed) == sorted(path for path in present if not path.endswith("_cuda_torch.cpp"))


def test_intrinsics_stay_in_common_cpu():
    others = [path for path in under("csrc/") if not path.startswith("csrc/common/cpu/")]
    assert (
        lines_matching(r"\b_mm\d*_\w+|\b__m(128|256|512)|\b_tile_\w+|immintrin\.h|__builtin_ia32", others)
        == []
    )


def test_inline_assembly_stays_with_the_device_functions_and_the_vectors():
    cpu = ("csrc/common/cpu/vec-inl.h", "csrc/common/cpu/tiles-inl.h")
    places = ("csrc/common/cuda/", *cpu, "csrc/emulation/")
    others = [path for path in under("csrc/") if not path.startswith(places)]
    assert lines_matching(r"\b(__)?asm(__)?\b\s*(volatile|__volatile__|\()", others) == []


def test_kernels_start_no_threads_of_their_own():
    assert lines_matching(r"#\s*pragma\s+omp|std::thread|pthread_create|omp\.h", under("csrc/ops/")) == []


def test_no_flag_that_changes_arithmetic_or_ties_to_this_machine():
    builders = [path for path in SOURCES if path.startswith(("setup.py", "build_tools/", "csrc/"))]
    assert lines_matching(r"-ffast-math|-Ofast|-march=native|use_fast_math", builders) == []


def calls_and_attributes(path: str) -> list[tuple[int, str]]:
    found = []
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            found.append((node.lineno, node.func.id))
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found.append((node.lineno, f"{node.value.id}.{node.attr}"))
    return found


COMMAND_LINE = ("fastdl/cli.py", "fastdl/__main__.py", "fastdl/cli/")


def test_the_package_prints_on_the_command_line_alone():
    quiet = [path for path in under("fastdl/", ".py") if not path.startswith(COMMAND_LINE)]
    assert [f"{p}:{line}" for p in quiet for line, name in calls_and_attributes(p) if name == "print"] == []


def test_the_environment_is_read_in_one_place():
    others = [path for path in under("fastdl/", ".py") if path != "fastdl/_extension.py"]
    reads = ("os.environ", "os.getenv", "os.putenv")
    assert [f"{p}:{line}" for p in others for line, name in calls_and_attributes(p) if name in reads] == []
    compiled = [
        p for p in under("csrc/") if p != "csrc/common/cpu/isa.cpp" and not p.startswith("csrc/emulation/")
    ]
    assert lines_matching(r"\bgetenv\b", compiled) == []


def test_no_promises_and_no_dead_code():
    own = [path for path in SOURCES if path != "tests/test_layout.py"]
    assert lines_matching(r"\b(TODO|FIXME|XXX|HACK)\b", own) == []
    assert lines_matching(r"^\s*(#|//)\s*(if|for|return|import|def|int|float|auto)\b.*[;:(]\s*$", own) == []
    assert lines_matching(r"^\s*#\s*if\s+0\b", under("csrc/")) == []


def test_backends_have_their_four_names():
    from fastdl import dispatch

    assert dispatch.BACKENDS == ("reference", "cpu", "cuda", "triton")
    for op in dispatch._ops.values():
        assert {candidate.backend for candidate in op.candidates} <= set(dispatch.BACKENDS)
        assert op.candidates[-1].backend == "reference"
