"""From the host to a device without a wait."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def sent(values: Tensor, device: torch.device) -> Tensor:
    """A host tensor on `device`. The copy is queued: from pageable memory the host would wait for it."""
    if device.type != "cuda" or torch.compiler.is_compiling():
        return values.to(device, non_blocking=True)
    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "a CUDA graph cannot keep a copy from the host: make the same call once before capture"
        )
    return values.pin_memory().to(device, non_blocking=True)


class OnDevices:
    """A host tensor, `values`, and its copy on each device it was used on.

    A stream that did not queue the copy waits for it on the device.
    """

    def __init__(self, values: Tensor) -> None:
        self.values = values
        self._copies: dict[tuple, Tensor] = {}
        self._queued: dict[tuple, torch.cuda.Event] = {}

    def on(self, device: torch.device) -> Tensor:
        """The values on `device`; copied there once."""
        if device.type == "cpu":
            return self.values
        key = (device.type, device.index)
        copy = self._copies.get(key)
        if copy is None:
            copy = self._copies[key] = sent(self.values, device)
            if device.type == "cuda" and not torch.compiler.is_compiling():
                self._queued[key] = torch.cuda.current_stream(device).record_event()
        elif self._queued and not torch.compiler.is_compiling():
            self._wait_on_the_device(key, device)
        return copy

    def _wait_on_the_device(self, key: tuple, device: torch.device) -> None:
        event = self._queued.get(key)
        if event is None or torch.cuda.is_current_stream_capturing():  # torch synchronises before a capture
            return
        if event.query():
            del self._queued[key]
        else:
            event.wait(torch.cuda.current_stream(device))

    def __getstate__(self) -> Mapping[str, object]:
        return {**self.__dict__, "_copies": {}, "_queued": {}}
