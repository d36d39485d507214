"""The C++ drivers of tests/cpp: kernels on raw pointers and std::thread, plain and under the sanitizers.

A driver is one file with main(); exit status 0 means passed, the argument is the number of random cases. ASan and UBSan
see reads and writes outside and undefined behaviour, TSan sees races that no lucky schedule needs. Where this machine
can compile for Arm and emulate it, drivers run there too.
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
ARM_COMPILER = shutil.which("aarch64-linux-gnu-g++")
ARM_EMULATOR = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")

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
# -g1: the lines that a report names, not the variables, whose places take long to follow. -fira-region=one: registers
# allocated over whole functions, which takes less time where there are so many branches.
BUILDS = {
    "plain": ["-O3"],
    "asan": [
        "-O1",
        "-g1",
        "-fno-omit-frame-pointer",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all",
        "-fira-region=one",
    ],
    "tsan": ["-O1", "-g1", "-fsanitize=thread"],
    "emulated": ["-O1", "-DFASTDL_EMULATE_AVX512"],
    "arm": ["-O3", "-static"],
}
# Random cases of each driver: seconds in every build.
CASES = {"plain": 200, "asan": 40, "tsan": 15, "emulated": 60, "arm": 15}

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


def leaves_out(kind: str) -> list[str]:
    """What this machine cannot run is not compiled into a driver: the build of the kernels compiles it."""
    whole = kind in ("emulated", "arm") or not _extension.cpu.loaded
    return [] if whole else [f"-DFASTDL_ISA_LAST={len(instruction_sets()) - 1}"]


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
            command = [
                ARM_COMPILER if kind == "arm" else COMPILER,
                *FLAGS,
                *BUILDS[kind],
                *leaves_out(kind),
                *sources,
                "-o",
                str(target),
            ]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            if "cannot find" in done.stderr and "san" in done.stderr:
                pytest.skip(f"this compiler has no {kind} runtime")
            assert done.returncode == 0, done.stderr[-4000:]
            assert "warning" not in done.stderr, done.stderr[-4000:]
            built[driver, kind] = target
        return built[driver, kind]

    return build


def run(program: Path, isa: str, count: int, emulator: tuple[str, ...] = ()) -> None:
    environment = os.environ | ({"FASTDL_CPU_ISA": isa} if isa else {})
    environment["ASAN_OPTIONS"] = "detect_leaks=1"
    environment["UBSAN_OPTIONS"] = "print_stacktrace=1"
    result = subprocess.run(
        [*emulator, program, str(count)], env=environment, capture_output=True, text=True, timeout=600
    )
    report = f"{isa or 'default'}: {result.stdout[-1500:]}\n{result.stderr[-3000:]}"
    assert result.returncode == 0, report
    assert "Sanitizer" not in result.stderr, report


@pytest.mark.parametrize("driver", SOURCES)
@pytest.mark.parametrize("kind", ["plain", "asan", "tsan"])
def test_driver(driver, kind, executable):
    program = executable(driver, kind)
    # Who writes what when does not depend on the width of a vector.
    for isa in instruction_sets()[-1:] if kind == "tsan" else instruction_sets():
        run(program, isa, CASES[kind])


# The others take a minute each to compile.
@pytest.mark.skipif("avx2" not in instruction_sets(), reason="the emulation of AVX-512 needs AVX2")
@pytest.mark.parametrize(
    "driver",
    [pytest.param(name, marks=() if name == "math_test.cpp" else pytest.mark.nightly) for name in SOURCES],
)
def test_driver_with_emulated_instruction_sets(driver, executable):
    """What this machine's CPU may not have: AVX-512 and AMX in terms of AVX2."""
    program = executable(driver, "emulated")
    for isa in _extension.CPU_ISAS[2:]:
        run(program, isa, CASES["emulated"])


@pytest.mark.skipif(
    ARM_COMPILER is None or ARM_EMULATOR is None, reason="NEON needs aarch64-linux-gnu-g++ and qemu-aarch64"
)
@pytest.mark.parametrize("driver", SOURCES)
def test_driver_on_arm(driver, executable):
    run(executable(driver, "arm"), "baseline", CASES["arm"], (ARM_EMULATOR,))
