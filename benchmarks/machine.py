"""The machine a row was measured on: what it is, and the limits that were measured on it."""

from __future__ import annotations

import datetime
import os
import platform
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Collection
from pathlib import Path

import torch

from fastdl import _extension

HERE = Path(__file__).parent


def facts(device: str) -> dict[str, str]:
    """What every row carries: hardware, instruction set, versions, threads, commit, date."""
    found = {
        "machine": slug(device),
        "device": torch.cuda.get_device_name() if device == "cuda" else cpu_model(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "isa": _extension.cpu_isa() or "no CPU kernels",
        "torch": torch.__version__,
        "torch_isa": torch.backends.cpu.get_cpu_capability(),
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
        "load": f"{os.getloadavg()[0]:.2f}" if hasattr(os, "getloadavg") else "",
    }
    if device == "cuda":
        found["isa"] = "sm_{}{}".format(*torch.cuda.get_device_capability())
        found["torch"] += f", cuDNN {torch.backends.cudnn.version()}"
    return found


def slug(device: str) -> str:
    """A file name for the machine."""
    name = torch.cuda.get_device_name() if device == "cuda" else f"{cpu_model()} {os.cpu_count()} cores"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def cpu_model() -> str:
    """The model as the system names it; family and model number too, since a guest may hide the name."""
    fields = _cpuinfo()
    if "model name" in fields:
        return f"{fields['model name']} (family {fields.get('cpu family')}, model {fields.get('model')})"
    return platform.processor() or platform.machine()


def has_avx2() -> bool:
    return "avx2" in _cpuinfo().get("flags", "").split()


def commit() -> str:
    """The short hash of HEAD, with "+" where the tree differs from it."""
    git = ["git", "-C", str(HERE)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    if head.returncode:
        return "unknown"
    # results of this very run are no change of the code
    changed = subprocess.run(
        [
            *git,
            "status",
            "--porcelain",
            "-uno",
            "--",
            ":/",
            ":(exclude,top)benchmarks/results",
            ":(exclude,top)docs",
        ],
        capture_output=True,
        text=True,
    )
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def limits(device: str, dtypes: Collection[str] = ("float32",)) -> dict[str, float]:
    """GF/s for each dtype, named as torch names it; GB/s of "copy"; on a GPU seconds of a "launch"."""
    return _cuda_limits(dtypes) if device == "cuda" else _cpu_limits(dtypes)


def _cpu_limits(dtypes: Collection[str]) -> dict[str, float]:
    found = _fma_peak(torch.get_num_threads())
    # Without an instruction for the type a product is a floor of the peak: torch's own, or one in float32.
    for name in dtypes:
        if name not in found:
            found[name] = max(_matmul_gflops(512, name, "cpu"), found.get("float32", 0.0))
    found["copy"] = _copy_gbytes(256 << 20, "cpu")
    return found


def _fma_peak(threads: int) -> dict[str, float]:
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        return {}
    limited = os.environ.get("FASTDL_CPU_ISA") == "avx2"
    flags = ["-mavx2", "-mfma"] if limited else ["-march=native"]
    with tempfile.TemporaryDirectory() as folder:
        program = str(Path(folder, "fma_peak"))
        build = [compiler, "-O3", *flags, "-fopenmp", str(HERE / "fma_peak.cpp"), "-o", program]
        try:
            subprocess.run(build, check=True, capture_output=True, timeout=60)
            printed = subprocess.run([program, str(threads)], check=True, capture_output=True, timeout=60)
        except (OSError, subprocess.SubprocessError):
            return {}
    names = {"fp32": "float32", "bf16": "bfloat16"}
    lines = (line.split() for line in printed.stdout.decode().splitlines())
    return {names[name]: float(value) for name, value in lines}


def _cuda_limits(dtypes: Collection[str]) -> dict[str, float]:
    before = torch.backends.cuda.matmul.allow_tf32
    # cuDNN's own default for convolutions is TF32
    torch.backends.cuda.matmul.allow_tf32 = True
    found = {name: _matmul_gflops(8192, name, "cuda") for name in dtypes}
    torch.backends.cuda.matmul.allow_tf32 = before
    found["copy"] = _copy_gbytes(1 << 30, "cuda")
    scalar = torch.zeros(1, device="cuda")
    found["launch"] = _best_seconds(scalar.zero_, "cuda", 200)
    return found


def _matmul_gflops(n: int, dtype: str, device: str) -> float:
    a, b = (torch.randn(n, n, device=device).to(getattr(torch, dtype)) for _ in range(2))
    return 2 * n**3 / _best_seconds(lambda: a @ b, device, 10) / 1e9


def _copy_gbytes(size: int, device: str) -> float:
    source, target = (torch.ones(size, dtype=torch.uint8, device=device) for _ in range(2))
    return 2 * size / _best_seconds(lambda: target.copy_(source), device, 10) / 1e9


def _best_seconds(call: Callable[[], object], device: str, repeats: int) -> float:
    sync = torch.cuda.synchronize if device == "cuda" else lambda: None
    call()
    best = float("inf")
    for _ in range(repeats):
        sync()
        begin = time.perf_counter()
        call()
        sync()
        best = min(best, time.perf_counter() - begin)
    return best


def _cpuinfo() -> dict[str, str]:
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}
