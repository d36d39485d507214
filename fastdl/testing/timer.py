"""Medians of interleaved calls: the only honest comparison on a noisy machine."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping

import torch

Turn = Callable[[Callable[[], object], int], float]


def interleaved(
    calls: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 12,
    least_seconds: float = 0.02,
    settle_seconds: float = 0.004,
    sync: Callable[[], object] = lambda: None,
    of: Callable[[list[float]], float] = statistics.median,
) -> dict[str, float]:
    """Seconds of each call, the median of its rounds or what `of` makes of them; the callables take turns."""
    taken = samples(
        calls,
        rounds=rounds,
        least_seconds=least_seconds,
        settle_seconds=settle_seconds,
        turn=lambda call, repeats: host_turn(call, repeats, sync),
    )
    return {name: of(values) for name, values in taken.items()}


def samples(
    calls: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 12,
    least_rounds: int = 5,
    budget_seconds: float | None = None,
    least_seconds: float = 0.02,
    settle_seconds: float = 0.004,
    turn: Turn | None = None,
) -> dict[str, list[float]]:
    """Seconds of each call in each round.

    A turn sleeps `settle_seconds` (thread pools of the previous one spin for milliseconds), calls once untimed,
    then times calls for at least `least_seconds`. The order is reversed in every other round, so that none
    always follows the same neighbour. Rounds stop after `budget_seconds`, but not before `least_rounds`; a call
    that takes longer than the whole budget is timed once.
    """
    turn = turn or host_turn
    times: dict[str, list[float]] = {name: [] for name in calls}
    repeats = {}
    for name, call in calls.items():
        begin = time.perf_counter()
        call()
        cold = time.perf_counter() - begin
        if budget_seconds and cold > budget_seconds:
            times[name].append(cold)
        else:
            repeats[name] = _repeats(call, least_seconds, turn)
    collecting = gc.isenabled()
    gc.disable()
    try:
        begin = time.perf_counter()
        for i in range(rounds):
            for name in list(repeats) if i % 2 == 0 else reversed(repeats):
                time.sleep(settle_seconds)
                times[name].append(turn(calls[name], repeats[name]))
            spent = time.perf_counter() - begin
            if budget_seconds is not None and i + 1 >= least_rounds and spent > budget_seconds:
                break
    finally:
        if collecting:
            gc.enable()
    return times


def host_turn(call: Callable[[], object], repeats: int, sync: Callable[[], object] = lambda: None) -> float:
    """Mean seconds of `repeats` calls by the host's clock, after one untimed call."""
    call()
    sync()
    begin = time.perf_counter()
    for _ in range(repeats):
        call()
    sync()
    return (time.perf_counter() - begin) / repeats


class CudaTurn:
    """Median seconds of single calls between CUDA events, the L2 cache overwritten before each.

    The overwrite also hides up to its own duration of host time; a launch costs a few microseconds at least.
    """

    def __init__(self, flush_bytes: int = 256 << 20) -> None:
        self.flush = torch.empty(flush_bytes, dtype=torch.uint8, device="cuda")

    def __call__(self, call: Callable[[], object], repeats: int) -> float:
        call()
        pairs = []
        for _ in range(repeats):
            self.flush.zero_()
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            pairs.append((begin, end))
        torch.cuda.synchronize()
        return statistics.median(begin.elapsed_time(end) for begin, end in pairs) / 1e3


def _repeats(call: Callable[[], object], least_seconds: float, turn: Turn) -> int:
    once = max(turn(call, 1), 1e-7)
    return max(1, min(1000, round(least_seconds / once)))
