"""Random numbers that a resumed run draws again: seeds from (seed, position) and the generators' states."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def mixed(*parts: int) -> int:
    """A 63-bit seed from non-negative integers; equal parts give equal seeds, others unrelated ones."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator(*parts: int) -> torch.Generator:
    """A CPU generator seeded with `mixed(*parts)`."""
    return torch.Generator().manual_seed(mixed(*parts))


def state(device: torch.device) -> Tensor:
    """The state of torch's own generators (the CPU's, then the device's), as one row of bytes."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return torch.cat(states)


def restore(saved: Tensor, device: torch.device) -> None:
    """Inverse of `state`. RuntimeError if the row was taken on another kind of device, or is none."""
    expected = state(device)
    if saved.shape != expected.shape or saved.dtype != expected.dtype:
        raise RuntimeError(
            f"random state must have {expected.numel()} bytes, got {list(saved.shape)} {saved.dtype}"
        )
    cpu_size = torch.get_rng_state().numel()
    torch.set_rng_state(saved[:cpu_size].clone())
    if device.type == "cuda":
        torch.cuda.set_rng_state(saved[cpu_size:].clone(), device)
