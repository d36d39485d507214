"""SIGINT and SIGTERM as a request that the training loop answers between two steps."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from types import FrameType


class Interrupted(Exception):
    """Training stopped as asked; everything so far is in `checkpoint`."""

    def __init__(self, signal_number: int, checkpoint: Path) -> None:
        name = signal.Signals(signal_number).name
        super().__init__(f"stopped by {name}; saved {checkpoint}; continue with --resume")
        self.signal_number = signal_number
        self.checkpoint = checkpoint


class StopRequest:
    """While open, SIGINT and SIGTERM only set `signal_number`; one that comes later than 2 s after acts as usual.

    (A launcher such as torchrun forwards what the terminal has already sent: the echo is not a second wish.)
    Outside the main thread Python allows no handlers: there it never asks to stop.
    """

    def __init__(self) -> None:
        self.signal_number = 0
        self._since = 0.0
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._asked)
        return self

    def __exit__(self, *exception: object) -> None:
        self._restore()

    def _asked(self, number: int, frame: FrameType | None) -> None:
        if not self.signal_number:
            self.signal_number, self._since = number, time.monotonic()
        elif time.monotonic() - self._since > 2:
            self._restore()
            signal.raise_signal(number)

    def _restore(self) -> None:
        while self._before:
            signal.signal(*self._before.popitem())
