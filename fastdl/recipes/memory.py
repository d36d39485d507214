"""How much memory a training step takes: what autograd saves, and the peak above rest."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn


def saved_bytes(model: nn.Module, forward: Callable[[], object]) -> int:
    """Bytes that `forward()` saves for backward: each storage once, the model's parameters and buffers not counted."""
    own = {_storage(tensor) for tensor in (*model.parameters(), *model.buffers())}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in own:
            # Storages are alive until `outputs` is dropped, so that an address stands for one storage.
            saved[_storage(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = forward()
    del outputs
    return sum(saved.values())


def peak_bytes(device: torch.device, step: Callable[[], object]) -> int | None:
    """The highest memory in use during `step()`, less what was in use before; None where it cannot be measured.

    CUDA: what torch's allocator handed out. CPU: resident memory of the process, from Linux' own high-water mark.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    gc.collect()
    if not _reset_high_water_mark():
        return None
    before = _status("VmRSS")
    step()
    return _status("VmHWM") - before


def _reset_high_water_mark() -> bool:
    if sys.platform != "linux":
        return False
    # Give back what malloc keeps, or an earlier step's memory would hide this one's.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is None:
        return False
    trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    kilobytes = next(line.split()[1] for line in lines if line.startswith(f"{name}:"))
    return 1024 * int(kilobytes)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
