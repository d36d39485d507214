"""What was built, what was loaded and what this machine offers: the facts a bug report needs."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import platform
from types import ModuleType

import numpy as np
import torch

from . import _extension


def info() -> dict[str, dict[str, object]]:
    """Versions, compiled libraries, CPU, CUDA and Triton as nested plain data (what `fastdl info --json` prints).

    >>> import fastdl.info
    >>> sorted(fastdl.info.info())
    ['cpu', 'cuda', 'libraries', 'triton', 'versions']
    """
    native, error = _native()
    return {
        "versions": _versions(native, error),
        "libraries": {
            **{library.name: _library(library) for library in (_extension.cpu, _extension.cuda)},
            "_native": {
                "loaded": native is not None,
                "path": getattr(native, "__file__", None),
                "error": error,
            },
        },
        "cpu": _cpu(),
        "cuda": _cuda(),
        "triton": _triton(),
    }


def _native() -> tuple[ModuleType | None, str | None]:
    """The optional module that knows how the compiled parts were built, or why it is missing."""
    if importlib.util.find_spec("fastdl._native") is None:
        return None, "not built"
    try:
        return importlib.import_module("fastdl._native"), None
    except ImportError as error:
        return None, str(error)


def _versions(native: ModuleType | None, error: str | None) -> dict[str, object]:
    from . import __version__

    return {
        "fastdl": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "compiler": native.build_info()["compiler"]
        if native
        else f"unknown: only the optional fastdl._native records it ({error})",
        "platform": platform.platform(),
    }


def _library(library: _extension.Library) -> dict[str, object]:
    path = None if library.path is None else str(library.path)
    return {"loaded": library.loaded, "path": path, "error": library.error}


def _cpu() -> dict[str, object]:
    capabilities = torch.cpu.get_capabilities()
    features = sorted(name for name, value in capabilities.items() if value is True)
    return {
        "name": capabilities.get("cpu_name", platform.processor()),
        "architecture": platform.machine(),
        "isa_in_use": _extension.cpu_isa(),
        "isa_best": _extension.CPU_ISAS[torch.ops.fastdl._best_cpu_isa()] if _extension.cpu.loaded else None,
        "torch_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "features": features,
    }


def _cuda() -> dict[str, object]:
    count = torch.cuda.device_count()
    if torch.version.cuda is None:
        missing = f"torch {torch.__version__} was built without CUDA"
    else:
        missing = None if count else "no CUDA device, or its driver does not answer"
    devices = [torch.cuda.get_device_properties(index) for index in range(count)]
    return {
        "torch_built_for": torch.version.cuda,
        "why_not": missing,
        "devices": [
            {
                "name": device.name,
                "capability": f"{device.major}.{device.minor}",
                "bytes": device.total_memory,
            }
            for device in devices
        ],
    }


def _triton() -> dict[str, object]:
    if importlib.util.find_spec("triton") is None:
        return {"version": None, "interpreted": False, "why_not": "triton is not installed"}
    interpreted = _extension.triton_interpreted()
    usable = interpreted or torch.cuda.is_available()
    return {
        "version": importlib.metadata.version("triton"),
        "interpreted": interpreted,
        "why_not": None
        if usable
        else "no CUDA device (TRITON_INTERPRET=1 interprets the kernels on the CPU)",
    }
