"""Everything that can be said about the GPU kernels without a GPU (some minutes).

1. The emulation in three builds: plain, AddressSanitizer + UndefinedBehaviorSanitizer, ThreadSanitizer; its feature
   kernels and every family's kernels, larger sizes, 16 schedules (4 and 2 under the sanitizers).
2. Its own test: every seeded bug, in feature kernels and in the real ones, must be caught by some build and schedule.
3. Every .cu and every Triton kernel for every architecture: warnings, spills, registers, shared memory
   (check_cuda_static.py --all, compile_triton.py --all).
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.emulation import library, seeded_bugs  # noqa: E402
from tests.emulation.driver import BUILDS, compile_driver, run_driver  # noqa: E402

# A sanitizer takes many times as long: ten minutes are too few for whole sequences on one core.
SECONDS = 3600
SCHEDULES = {"plain": range(16), "asan": (0, 1, 3, 7), "tsan": (0, 7)}
# Long enough a hunt for a bug: fixed orders and four random mixes.
HUNT = {"plain": range(8), "asan": (0, 1), "tsan": (0, 7)}
# A family with emulated kernels has a driver of its own.
FAMILIES = tuple(
    sorted(path.stem for path in (ROOT / "tests/emulation").glob("*.cpp") if path.stem != "features")
)

complaints: list[str] = []


def main() -> None:
    if library.missing() is not None:
        sys.exit(f"error: {library.missing()}")
    step("right kernels", check_right_kernels)
    step("seeded bugs of the features", check_feature_bugs)
    step("seeded bugs of the kernels", check_mutations)
    step("every architecture", check_architectures)
    for complaint in complaints:
        print(f"error: {complaint}", file=sys.stderr)
    sys.exit(1 if complaints else 0)


def step(name: str, check) -> None:
    begin = time.monotonic()
    print(f"== {name}", flush=True)
    check()
    print(f"== {name}: {time.monotonic() - begin:.0f} s", flush=True)


def check_right_kernels() -> None:
    for name in ("features", *FAMILIES):
        for build in BUILDS:
            program = compile_driver(name, build)
            for schedule in SCHEDULES[build]:
                large = ("--large", 1) if name in FAMILIES else ()
                complaint = run_driver(program, schedule, *large, seconds=SECONDS)
                if complaint:
                    complaints.append(f"{name}, {build}, schedule {schedule}: {complaint}")
            print(f"{name}, {build}: {len(SCHEDULES[build])} schedules", flush=True)


def hunt(program_of, *arguments: object) -> str | None:
    """The first build that catches the bug, and in how many of its schedules."""
    for build, schedules in HUNT.items():
        program = program_of(build)
        caught = [c for s in schedules if (c := run_driver(program, s, *arguments, seconds=120))]
        if caught:
            return f"{build} {len(caught)}/{len(schedules)}: {caught[0][:110]}"
    return None


def check_feature_bugs() -> None:
    for kernel, bugs in seeded_bugs.FEATURES.items():
        for bug in bugs:
            caught = hunt(lambda build: compile_driver("features", build), "--kernel", kernel, "--bug", bug)
            print(f"{kernel} {bug}: {caught}", flush=True)
            if caught is None:
                complaints.append(f"bug {bug} of {kernel} is not caught")


def check_mutations() -> None:
    for mutation in seeded_bugs.MUTATIONS:
        with tempfile.TemporaryDirectory() as folder:
            csrc = Path(folder) / "csrc"
            shutil.copytree(library.CSRC, csrc, ignore=shutil.ignore_patterns("cpu"))
            path = csrc / mutation.file
            text = path.read_text()
            assert text.count(mutation.old) == 1, f"{mutation.what}: the line is gone"
            path.write_text(text.replace(mutation.old, mutation.new))
            family = mutation.family
            caught = hunt(lambda build, n=family, c=csrc, f=folder: compile_driver(n, build, c, Path(f)))
        print(f"{mutation.what}: {caught}", flush=True)
        if caught is None:
            complaints.append(f"not caught: {mutation.what}")


def check_architectures() -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".cu") as source:
        source.write('#include "features.cuh"\n')
        source.flush()
        command = [
            f"{library.cuda_home()}/bin/nvcc",
            "-c",
            source.name,
            "-std=c++17",
            "-arch=sm_90a",
            "-o",
            "/dev/null",
        ]
        command += ["-Werror", "all-warnings", f"-I{library.CSRC}", f"-I{ROOT}/tests/emulation"]
        if subprocess.run(command).returncode != 0:
            complaints.append("features.cuh does not compile with nvcc")
    for script in ("check_cuda_static.py", "compile_triton.py"):
        if subprocess.run([sys.executable, ROOT / "build_tools" / script, "--all"]).returncode != 0:
            complaints.append(f"{script} --all")


if __name__ == "__main__":
    main()
