"""The training curve as PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..plots import draw_loss, figure


def plot_training(path: Path, runs: Sequence[dict]) -> None:
    whole = figure((6, 4))
    axes = whole.subplots()
    draw_loss(axes, runs)
    axes.set(ylabel="training loss (mean squared error)")
    whole.savefig(path, dpi=150)
