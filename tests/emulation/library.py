"""The emulated CUDA kernels of a family as a shared object: compiled once per content, called by ctypes."""

from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import shutil
import subprocess
from pathlib import Path

from build_tools import toolchain

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
BUILD = ROOT / "build" / "emulation"

COMMON_FLAGS = (
    "-std=c++17", "-Wall", "-Wno-unknown-pragmas", "-fno-strict-aliasing", "-DFD_EMULATE", f"-I{CSRC}",
)  # fmt: skip
# Registers that CUDA leaves undefined hold a pattern, so that using one shows.
PLAIN_FLAGS = ("-O2", "-ftrivial-auto-var-init=pattern")


class EmulationError(AssertionError):
    """What the emulated machine complained about: a race, a bound, a barrier, an invalid launch."""


@functools.cache
def cuda_home() -> Path | None:
    """The CUDA toolkit, or None."""
    home = toolchain.find_cuda_home()
    return None if home is None else Path(home)


def missing() -> str | None:
    """Why kernels cannot be emulated here; None if they can."""
    if cuda_home() is None:
        return f"the emulation needs CUDA's headers: {toolchain.NO_CUDA_HOME}"
    if shutil.which("g++") is None:
        return "the emulation needs g++"
    return None


def content_hash(*parts: str) -> str:
    """16 hex digits over every C++ and CUDA source and `parts`."""
    digest = hashlib.sha256("\n".join(parts).encode())
    for path in sorted(CSRC.rglob("*")):
        if path.suffix in (".h", ".cuh", ".cu", ".cpp") and "cpu" not in path.relative_to(CSRC).parts:
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


@functools.cache
def build(family: str) -> tuple[Path, str]:
    """csrc/emulation/ops/<family>.cpp compiled, or the compiler's complaint; once per content of csrc."""
    source = CSRC / "emulation" / "ops" / f"{family}.cpp"
    command = ["g++", "-shared", "-fPIC", *PLAIN_FLAGS, *COMMON_FLAGS, "-isystem", f"{cuda_home()}/include"]
    BUILD.mkdir(parents=True, exist_ok=True)
    target = BUILD / f"{family}-{content_hash(*command)}.so"
    with open(BUILD / f"{family}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            for old in BUILD.glob(f"{family}-*.so"):
                old.unlink()
            partial = target.with_suffix(".partial")
            compiled = subprocess.run(
                [*command, str(source), "-o", str(partial)], capture_output=True, text=True
            )
            if compiled.returncode != 0:
                return target, compiled.stderr
            partial.rename(target)
    return target, ""


@functools.cache
def load(family: str) -> ctypes.CDLL:
    """The family's shared object, its control functions declared."""
    path, complaint = build(family)
    if complaint:
        raise EmulationError(complaint)
    library = ctypes.CDLL(str(path))
    library.emulation_take_error.restype = ctypes.c_char_p
    return library


def run(library: ctypes.CDLL, launcher: str, *arguments: object, schedule: int = 0) -> None:
    """Call a launcher under a schedule. Raises EmulationError with what the emulation says."""
    library.emulation_set_schedule(schedule)
    status = getattr(library, launcher)(*arguments)
    error = library.emulation_take_error()
    if error is not None:
        raise EmulationError(error.decode())
    if status != 0:
        raise EmulationError(f"{launcher} returned CUDA error {status}")
