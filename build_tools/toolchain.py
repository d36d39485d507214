"""What can be built here, and why or why not: setup.py asks, and prints the answer as a table."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

OLDEST_TORCH = (2, 11)
ARCHITECTURES = "7.5;8.0;8.6;8.9;9.0a;10.0a;12.0a+PTX"
NO_CUDA_HOME = (
    "no CUDA toolkit (bin/nvcc and include/cuda_runtime.h) in CUDA_HOME, CUDA_PATH, around PATH's nvcc or in "
    "/usr/local/cuda: install one (developer.nvidia.com/cuda-downloads), or say with CUDA_HOME where it lies"
)
MEMORY_PER_JOB = 2 << 30  # bytes: one compiler with every instruction set of a kernel file


@dataclass(frozen=True)
class Part:
    name: str
    build: bool
    reason: str


@dataclass(frozen=True)
class Plan:
    cpu: Part
    cuda: Part
    native: Part
    cuda_home: str | None
    facts: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        rows = [
            (p.name, f"{'build' if p.build else 'skip'}: {p.reason}")
            for p in (self.cpu, self.cuda, self.native)
        ]
        return "\n".join(["fastdl build", *(f"  {name:<16}{text}" for name, text in (*rows, *self.facts))])


def torch_build_tools():
    """torch and its extension builders; a one-line error where torch is missing or too old."""
    try:
        import torch
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except ImportError as error:
        sys.exit(f"fastdl needs torch>={'.'.join(map(str, OLDEST_TORCH))} to build: {error}")
    if tuple(map(int, re.findall(r"\d+", torch.__version__)[:2])) < OLDEST_TORCH:
        sys.exit(f"fastdl needs torch>={'.'.join(map(str, OLDEST_TORCH))}, found {torch.__version__}")
    return torch, BuildExtension, CppExtension


def plan(torch, have_cuda_sources: bool) -> Plan:
    """Decide each part from its switch, the compilers and torch; sets MAX_JOBS and TORCH_CUDA_ARCH_LIST."""
    jobs = os.environ.setdefault("MAX_JOBS", str(_jobs()))
    cuda_home = find_cuda_home()
    cuda = _cuda(torch, cuda_home, have_cuda_sources)
    if cuda.build:
        from torch.utils import cpp_extension

        cpp_extension.CUDA_HOME = cuda_home
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", ARCHITECTURES)
    facts = (
        ("torch", f"{torch.__version__} at {Path(torch.__file__).parent}"),
        ("compiler", _compiler() or "none"),
        ("CUDA toolkit", cuda_home or "none"),
        ("architectures", os.environ.get("TORCH_CUDA_ARCH_LIST", "-") if cuda.build else "-"),
        ("jobs", jobs),
    )
    return Plan(_cpu(), cuda, _native(), cuda_home if cuda.build else None, facts)


def find_cuda_home() -> str | None:
    """The toolkit's root, compiler and headers in it. nvcc may be a wrapper on PATH: ask it where it lives."""
    for candidate in (
        os.environ.get("CUDA_HOME"),
        os.environ.get("CUDA_PATH"),
        _home_of_nvcc(),
        "/usr/local/cuda",
    ):
        home = Path(candidate or os.devnull)
        if all((home / file).is_file() for file in ("bin/nvcc", "include/cuda_runtime.h")):
            return str(home.resolve())
    return None


def _home_of_nvcc() -> str | None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        return None
    dryrun = subprocess.run([nvcc, "--dryrun", "-x", "cu", "-c", os.devnull], capture_output=True, text=True)
    found = re.search(r"^#\$ TOP=(.*)$", dryrun.stderr, re.MULTILINE)
    return str(Path(found.group(1)).resolve()) if found else None


def _switch(name: str) -> str:
    value = os.environ.get(name, "auto")
    if value not in ("auto", "0", "1"):
        sys.exit(f"{name} must be auto, 0 or 1, got {value!r}")
    return value


def _part(name: str, variable: str, obstacle: str | None, why: str) -> Part:
    switch = _switch(variable)
    if switch == "0":
        return Part(name, False, f"{variable}=0")
    if obstacle and switch == "1":
        sys.exit(f"{variable}=1, but {obstacle}")
    return Part(name, not obstacle, obstacle or why)


def _cpu() -> Part:
    obstacle = None
    if _compiler() is None:
        obstacle = "no C++ compiler"
    elif platform.system() != "Linux" and _switch("FASTDL_CPU") != "1":
        obstacle = f"not on {platform.system()} unless FASTDL_CPU=1"
    return _part("fastdl._C", "FASTDL_CPU", obstacle, f"CPU kernels for {platform.machine()}")


def _cuda(torch, cuda_home: str | None, have_sources: bool) -> Part:
    obstacle = None
    if not have_sources:
        obstacle = "no CUDA sources"
    elif cuda_home is None:
        obstacle = NO_CUDA_HOME
    elif torch.version.cuda is None and _switch("FASTDL_CUDA") != "1":
        obstacle = "this torch has no CUDA (FASTDL_CUDA=1 builds anyway)"
    return _part("fastdl._cuda", "FASTDL_CUDA", obstacle, "CUDA kernels")


def _native() -> Part:
    obstacle = None if importlib.util.find_spec("pybind11") else "pybind11 is not installed"
    return _part("fastdl._native", "FASTDL_NATIVE", obstacle, "build information")


def _compiler() -> str | None:
    return shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")


def _jobs() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not hasattr(os, "sysconf"):
        return cores
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(cores, memory // MEMORY_PER_JOB))
