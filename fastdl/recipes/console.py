"""What a recipe shows: lines and a progress bar, from the leading process only."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TextIO

from .extras import require


class Console:
    """Writes lines to `stream` and progress bars to standard error; silent when not `enabled`."""

    def __init__(self, stream: TextIO, enabled: bool = True) -> None:
        self.stream, self.enabled = stream, enabled

    def line(self, text: str = "") -> None:
        if self.enabled:
            self.stream.write(f"{text}\n")
            self.stream.flush()

    def progress(self, total: int, done: int, label: str) -> AbstractContextManager[Callable[[dict], None]]:
        """A bar for the steps [done, total); what the block gets is called once a step with values to show."""
        return _Bar(total, done, label, self.enabled)


class _Bar:
    def __init__(self, total: int, done: int, label: str, enabled: bool) -> None:
        tqdm = require("tqdm", "tqdm").tqdm
        interval = 0.1 if sys.stderr.isatty() else 5.0
        self.bar = tqdm(
            total=total,
            initial=done,
            desc=label,
            disable=not enabled,
            leave=False,
            unit="step",
            mininterval=interval,
        )

    def __enter__(self) -> Callable[[dict], None]:
        return self._step

    def __exit__(self, *exception: object) -> None:
        self.bar.close()

    def _step(self, values: dict) -> None:
        self.bar.set_postfix(values, refresh=False)
        self.bar.update()
