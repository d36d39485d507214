"""Memory of a call: what it saves for its backward pass, and what it adds to the process at its peak."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def saved_bytes(function: Callable[[], object], inputs: tuple[Tensor, ...]) -> int:
    """Bytes that `function` saves for its backward pass, other than its own inputs; each storage once."""
    given = {t.untyped_storage().data_ptr() for t in inputs}
    kept: dict[int, Tensor] = {}

    def pack(t: Tensor) -> Tensor:
        if t.untyped_storage().data_ptr() not in given:
            kept[t.untyped_storage().data_ptr()] = t
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        function()
    return sum(t.untyped_storage().nbytes() for t in kept.values())


def peak_bytes(call: Callable[[], object], device: str) -> int | None:
    """The most memory one call adds to what is resident between calls; None where the system cannot say.

    Scratch that an engine keeps from call to call is resident, and so not in it.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    if not reset_peak():
        return None
    before = _status("VmRSS")
    call()
    return max(0, _status("VmHWM") - before)


def reset_peak() -> bool:
    """Give freed memory back and start the process's high-water mark anew; False outside Linux."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        CLEAR.write_text("5")
    except (OSError, AttributeError):
        return False
    return True


def resident_peak() -> int | None:
    """The high-water mark of the process, in bytes."""
    return _status("VmHWM") if STATUS.exists() else None


def _status(name: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024
