"""Compiles and runs the C++ drivers (features.cpp, conv_relu_maxpool.cpp) plain or under a sanitizer."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from . import library

HERE = Path(__file__).resolve().parent
BUILDS = {
    "plain": library.PLAIN_FLAGS,
    "asan": ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    "tsan": ("-O1", "-g", "-ftrivial-auto-var-init=pattern", "-fsanitize=thread"),
}
ENVIRONMENT = {"TSAN_OPTIONS": "halt_on_error=1 exitcode=66", "ASAN_OPTIONS": "detect_leaks=0"}


def compile_driver(name: str, build: str, csrc: Path = library.CSRC, folder: Path = library.BUILD) -> Path:
    """The driver tests/emulation/<name>.cpp as a program. Raises EmulationError with the compiler's complaint."""
    flags = [flag.replace(str(library.CSRC), str(csrc)) for flag in library.COMMON_FLAGS]
    command = ["g++", *BUILDS[build], *flags, f"-I{HERE}", "-isystem", f"{library.cuda_home()}/include"]
    source = HERE / f"{name}.cpp"
    key = library.content_hash(
        *command, source.read_text(), *(p.read_text() for p in sorted(HERE.glob("*.[hc]*h")))
    )
    program = folder / f"{name}-{build}-{key}"
    if program.exists() and csrc == library.CSRC:
        return program
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"{name}-{build}-*"):
        old.unlink()
    partial = program.with_suffix(f".{os.getpid()}")
    result = subprocess.run([*command, str(source), "-o", str(partial)], capture_output=True, text=True)
    if result.returncode != 0:
        raise library.EmulationError(result.stderr)
    partial.rename(program)
    return program


def run_driver(program: Path, schedule: int, *arguments: object, seconds: int = 600) -> str | None:
    """None if every case of the driver is right, else the first complaint."""
    command = [str(program), "--schedule", str(schedule), *map(str, arguments)]
    try:
        result = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=seconds,
            env=os.environ | ENVIRONMENT,
            errors="replace",
        )
    except subprocess.TimeoutExpired:
        return f"ran longer than {seconds} s"
    if result.returncode == 0:
        return None
    telling = ("FAIL", "runtime error", "ERROR: AddressSanitizer", "WARNING: ThreadSanitizer")
    lines = [
        line for line in (result.stdout + result.stderr).splitlines() if any(word in line for word in telling)
    ]
    return lines[0] if lines else f"exit status {result.returncode}"
