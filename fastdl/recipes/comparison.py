"""Trained models side by side: time, memory and what is saved for backward, in one process and in turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from ..testing.timer import interleaved
from .memory import peak_bytes, saved_bytes
from .training import Training

ROUNDS = 5


def measure(trainings: Mapping[str, Training]) -> dict[str, dict[str, float | int | None]]:
    """step_ms, peak_bytes and saved_bytes of each on the same batch. Takes real steps: evaluate and save before."""
    steps = {name: _step(training) for name, training in trainings.items()}
    # Takes turns, so that a disturbance hits every model; a step is long enough to be timed alone.
    seconds = interleaved(steps, rounds=ROUNDS, least_seconds=0)
    return {
        name: {
            "step_ms": 1e3 * seconds[name],
            "peak_bytes": peak_bytes(training.group.device, steps[name]),
            "saved_bytes": _saved(training),
        }
        for name, training in trainings.items()
    }


def lines(runs: Sequence[dict], quality: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    """The table of `--compare`. `runs` as in the metrics file, each with "measured"; `quality` are its first rows."""
    measured = [run["measured"] for run in runs]
    rows = [
        *quality,
        ("time per step", [f"{values['step_ms']:.1f} ms" for values in measured]),
        ("peak memory of a step", [_megabytes(values["peak_bytes"]) for values in measured]),
        ("saved for backward", [_megabytes(values["saved_bytes"]) for values in measured]),
    ]
    return table([run["model"] for run in runs], rows)


def table(names: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    """Lines of a table: a label and one value for each name."""
    width = max(len(label) for label, _ in rows)
    widths = [max(len(name), *(len(values[i]) for _, values in rows)) for i, name in enumerate(names)]
    return [
        f"{label:<{width}}" + "".join(f"  {value:>{w}}" for value, w in zip(values, widths, strict=True))
        for label, values in (("", names), *rows)
    ]


def _step(training: Training) -> Callable[[], None]:
    batch = training.task.batch(0, 0)

    def step() -> None:
        loss, _ = training.task.loss(training.network, batch)
        training.update(loss)
        loss.item()
        if training.group.device.type == "cuda":
            torch.cuda.synchronize(training.group.device)

    training.model.train()
    return step


def _megabytes(count: int | None) -> str:
    return "not measured" if count is None else f"{count / 1e6:.1f} MB"


def _saved(training: Training) -> int:
    batch = training.task.batch(0, 0)
    return saved_bytes(training.model, lambda: training.task.loss(training.network, batch))
