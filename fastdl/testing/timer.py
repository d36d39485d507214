"""Medians of interleaved calls: the only honest comparison on a noisy machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def interleaved(
    calls: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 12,
    least_seconds: float = 0.02,
    settle_seconds: float = 0.004,
    sync: Callable[[], object] = lambda: None,
) -> dict[str, float]:
    """Median seconds of each call, the callables taking turns in every round.

    A turn sleeps `settle_seconds` (thread pools of the previous one spin for milliseconds), calls once untimed,
    then times calls for at least `least_seconds`.
    """
    repeats = {name: _repeats(call, least_seconds, sync) for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            time.sleep(settle_seconds)
            call()
            sync()
            begin = time.perf_counter()
            for _ in range(repeats[name]):
                call()
            sync()
            times[name].append((time.perf_counter() - begin) / repeats[name])
    return {name: statistics.median(values) for name, values in times.items()}


def _repeats(call: Callable[[], object], least_seconds: float, sync: Callable[[], object]) -> int:
    for _ in range(2):
        call()
    sync()
    begin = time.perf_counter()
    call()
    sync()
    once = max(time.perf_counter() - begin, 1e-7)
    return max(1, min(1000, round(least_seconds / once)))
