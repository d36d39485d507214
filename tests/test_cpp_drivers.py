"""The C++ drivers of tests/cpp: kernels on raw pointers and std::thread, plain and under the sanitizers.

A driver is one file with main(); exit status 0 means passed, the argument is the number of random cases.
ASan and UBSan see reads and writes outside and undefined behaviour, TSan sees races that no lucky schedule needs.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from fastdl import _extension

ROOT = Path(__file__).parents[1]
DRIVERS = ROOT / "tests" / "cpp"
COMPILER = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")

# A driver names what it links with, besides csrc/common/cpu, in lines "// links <path under csrc>".
SOURCES = {
    path.name: [
        f"csrc/{linked}" for linked in re.findall(r"^// links (\S+)$", path.read_text(), re.MULTILINE)
    ]
    for path in sorted(DRIVERS.glob("*.cpp"))
}
COMMON = [f"csrc/common/cpu/{name}.cpp" for name in ("isa", "pages", "scratch")]

FLAGS = [
    "-std=c++17",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-Wall",
    "-Wno-psabi",
    "-Wno-maybe-uninitialized",
]
FLAGS += ["-Wno-unknown-pragmas", "-Icsrc", "-Itests/cpp", "-pthread"]
# -g1: the lines that a report names, not the variables, whose places take long to follow.
BUILDS = {
    "plain": ["-O3"],
    "asan": [
        "-O1",
        "-g1",
        "-fno-omit-frame-pointer",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all",
    ],
    "tsan": ["-O1", "-g1", "-fsanitize=thread"],
}
# Random cases of each driver: seconds in every build.
CASES = {"plain": 200, "asan": 40, "tsan": 15}

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(COMPILER is None, reason="no C++ compiler"),
]


def instruction_sets() -> tuple[str, ...]:
    """All this machine has; without the loaded kernels, only the one the driver picks itself."""
    if not _extension.cpu.loaded:
        return ("",)
    import torch

    return _extension.CPU_ISAS[: torch.ops.fastdl._best_cpu_isa() + 1]


def leaves_out() -> list[str]:
    """What this machine cannot run is not compiled into a driver: the build of the kernels compiles it."""
    return [f"-DFASTDL_ISA_LAST={len(instruction_sets()) - 1}"] if _extension.cpu.loaded else []


def test_there_are_drivers():
    assert len(SOURCES) >= 3
    assert all((ROOT / source).is_file() for sources in SOURCES.values() for source in sources)


@pytest.fixture(scope="module")
def executable(tmp_path_factory):
    """Compiles a driver in one build, once."""
    built: dict[tuple[str, str], Path] = {}

    def build(driver: str, kind: str) -> Path:
        if (driver, kind) not in built:
            target = tmp_path_factory.mktemp("drivers") / f"{Path(driver).stem}_{kind}"
            sources = [f"tests/cpp/{driver}", *SOURCES[driver], *COMMON]
            command = [COMPILER, *FLAGS, *BUILDS[kind], *leaves_out(), *sources, "-o", str(target)]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            if "cannot find" in done.stderr and "san" in done.stderr:
                pytest.skip(f"this compiler has no {kind} runtime")
            assert done.returncode == 0, done.stderr[-4000:]
            assert "warning" not in done.stderr, done.stderr[-4000:]
            built[driver, kind] = target
        return built[driver, kind]

    return build


@pytest.mark.parametrize("driver", SOURCES)
@pytest.mark.parametrize("kind", BUILDS)
def test_driver(driver, kind, executable):
    program = executable(driver, kind)
    for isa in instruction_sets():
        environment = os.environ | ({"FASTDL_CPU_ISA": isa} if isa else {})
        environment["ASAN_OPTIONS"] = "detect_leaks=1"
        environment["UBSAN_OPTIONS"] = "print_stacktrace=1"
        result = subprocess.run(
            [program, str(CASES[kind])], env=environment, capture_output=True, text=True, timeout=600
        )
        report = f"{isa or 'default'}: {result.stdout[-1500:]}\n{result.stderr[-3000:]}"
        assert result.returncode == 0, report
        assert "Sanitizer" not in result.stderr, report
