"""Loads the compiled kernels, or says why not. The only place that reads the environment or loads shared objects.

`_C` holds the CPU kernels, `_cuda` the CUDA kernels; both are optional. Each carries a hash of the Python
schemas it was built for: another hash is not loaded, since the ABI checks only the number of arguments.
"""

from __future__ import annotations

import ctypes
import os
import struct
from dataclasses import dataclass
from pathlib import Path

import torch

from ._schemas import FACTS, SCHEMA_HASH

CPU_ISAS = ("baseline", "avx2", "avx512", "avx512bf16", "amx")


# Kept alive: the definitions die with the object.
_library = torch.library.Library("fastdl", "FRAGMENT")
for _fact in FACTS:
    _library.define(_fact)


@dataclass(frozen=True)
class Library:
    """One shared object: `error` is None when it is loaded."""

    name: str
    path: Path | None
    error: str | None

    @property
    def loaded(self) -> bool:
        return self.error is None


def environment_backend() -> str | None:
    """FASTDL_BACKEND, checked; None if unset."""
    name = os.environ.get("FASTDL_BACKEND") or None
    if name not in (None, "reference", "cpu", "cuda", "triton"):
        raise ValueError(f"FASTDL_BACKEND must be reference, cpu, cuda or triton, got {name!r}")
    return name


def triton_interpreted() -> bool:
    """Whether Triton kernels run on the CPU, by Triton's interpreter (TRITON_INTERPRET=1)."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def cpu_isa() -> str | None:
    """The instruction set the CPU kernels use in this process; None without CPU kernels."""
    return _cpu_isa


def cpu_is_amd() -> bool:
    """Whether the CPU is AMD's, whose vectors MKL's products do not use in full; False without CPU kernels."""
    return _cpu_is_amd


def cpu_halves_vectors() -> bool:
    """Whether the CPU executes 512-bit operations in two halves, as Zen 4 does; False without CPU kernels."""
    return _cpu_halves_vectors


def _load(name: str) -> Library:
    found = sorted(Path(__file__).parent.glob(f"{name}.*so"))
    if not found:
        return Library(name, None, "not built")
    path = found[0]
    try:
        built_for = _schema_hash(path)
        if built_for != SCHEMA_HASH:
            return Library(
                name, path, f"built for other schemas ({built_for} instead of {SCHEMA_HASH}): rebuild"
            )
        if _is_cut_short(path):
            return Library(name, path, f"{path} is damaged: the file is cut short")
        torch.ops.load_library(path)
    except OSError as error:
        return Library(name, path, str(error.__cause__ or error))
    return Library(name, path, None)


def _is_cut_short(path: Path) -> bool:
    # Mapping a truncated object kills the process. An ELF file ends with its section headers.
    header = path.read_bytes()[:64]
    if len(header) < 64 or header[:5] != b"\x7fELF\x02":
        return False
    (offset,) = struct.unpack_from("<Q", header, 40)
    size, count = struct.unpack_from("<HH", header, 58)
    return path.stat().st_size < offset + size * count


def _schema_hash(path: Path) -> str:
    # Opening the object registers its operators, so read the hash from the file itself.
    marker = b"fastdl-schemas:"
    content = path.read_bytes()
    at = content.find(marker)
    return content[at + len(marker) : at + len(marker) + 16].decode("ascii", "replace") if at >= 0 else "none"


def _check_cpu_isa() -> None:
    asked = os.environ.get("FASTDL_CPU_ISA")
    if asked is None or not cpu.loaded:
        return
    if asked not in CPU_ISAS:
        raise ValueError(f"FASTDL_CPU_ISA must be one of {CPU_ISAS}, got {asked!r}")
    if cpu_isa() != asked:
        raise ValueError(f"FASTDL_CPU_ISA={asked} is not available on this CPU; the best here is {cpu_isa()}")


def open_library(path: Path) -> ctypes.CDLL:
    """A handle for tests that call an extern "C" table."""
    return ctypes.CDLL(str(path))


cpu = _load("_C")
cuda = (
    _load("_cuda") if torch.version.cuda else Library("_cuda", None, f"torch {torch.__version__} has no CUDA")
)
# Asked once: torch.compile traces through whoever reads it, not through the operator.
_cpu_isa = CPU_ISAS[torch.ops.fastdl._cpu_isa()] if cpu.loaded else None
_cpu_is_amd = cpu.loaded and torch.ops.fastdl._cpu_is_amd()
_cpu_halves_vectors = cpu.loaded and torch.ops.fastdl._cpu_halves_vectors()
_check_cpu_isa()
