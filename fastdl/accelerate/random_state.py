"""The random generators of Python, PyTorch and NumPy: their state, compared and restored."""

from __future__ import annotations

import random
import sys

import torch


class RandomState:
    """The state at the time it was made."""

    def __init__(self) -> None:
        self._python = random.getstate()
        self._torch = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        numpy = sys.modules.get("numpy")
        self._numpy = numpy.random.get_state() if numpy else None

    def unchanged(self) -> bool:
        """Whether nothing was drawn on the CPU since."""
        now = RandomState()
        numpy = self._numpy is None or _comparable(self._numpy) == _comparable(now._numpy)
        return self._python == now._python and torch.equal(self._torch, now._torch) and numpy

    def restore(self) -> None:
        random.setstate(self._python)
        torch.set_rng_state(self._torch)
        if self._cuda:
            torch.cuda.set_rng_state_all(self._cuda)
        if self._numpy is not None:
            sys.modules["numpy"].random.set_state(self._numpy)


def _comparable(state: tuple) -> list[object]:
    return [part.tobytes() if hasattr(part, "tobytes") else part for part in state]
