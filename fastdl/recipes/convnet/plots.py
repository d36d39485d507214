"""The training curves, the scores of each class and the confusion matrix as PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..extras import require
from .report import COLUMNS, MAX_SHOWN, Scores


def plot_training(path: Path, runs: Sequence[dict]) -> None:
    """Left: each step's loss (thin) and the epochs' means (thick, at the epoch's end). Right: training accuracy."""
    figure = _figure((10, 4))
    loss, accuracy = figure.subplots(1, 2)
    for color, run in zip(("C0", "C1"), runs, strict=False):
        epochs, steps = run["epochs"], run["step_losses"]
        ends = 1 + np.arange(len(epochs))
        loss.plot(
            np.arange(len(steps)) * len(epochs) / len(steps), steps, color=color, alpha=0.3, linewidth=0.8
        )
        loss.plot(ends, [epoch["loss"] for epoch in epochs], color=color, marker="o", label=run["model"])
        accuracy.plot(
            ends, [epoch["accuracy"] for epoch in epochs], color=color, marker="o", label=run["model"]
        )
    loss.set(xlabel="epoch", ylabel="training loss (cross-entropy)", yscale="log")
    accuracy.set(xlabel="epoch", ylabel="training accuracy (augmented, with dropout)")
    accuracy.xaxis.get_major_locator().set_params(integer=True)
    loss.legend()
    figure.savefig(path, dpi=150)


def plot_scores(path: Path, rows: Scores, title: str) -> None:
    """Precision, recall and f1 of each class and on average, as coloured numbers."""
    names = [row["name"] for row in rows]
    values = np.array([[row[column] for column in COLUMNS[:3]] for row in rows])
    figure = _figure((5, min(1.5 + 0.35 * len(names), 16)))
    axes = figure.subplots()
    axes.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set(title=title)
    axes.set_xticks(range(3), COLUMNS[:3])
    if len(names) <= MAX_SHOWN + 2:
        axes.set_yticks(range(len(names)), names, parse_math=False)
        _write_cells(axes, values, np.vectorize("{:.3f}".format)(values))
    figure.savefig(path, dpi=150)


def plot_confusion(path: Path, matrix: Sequence[Sequence[int]], classes: Sequence[str], title: str) -> None:
    """Row: true class, column: predicted class; colour is the share of the true class."""
    counts = np.asarray(matrix)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = min(3 + 0.45 * len(classes), 16)
    figure = _figure((side, side))
    axes = figure.subplots()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="true", title=title)
    if len(classes) <= MAX_SHOWN:
        # Class names are folder names: "$" in one is not mathematics.
        axes.set_xticks(range(len(classes)), classes, rotation=90, parse_math=False)
        axes.set_yticks(range(len(classes)), classes, parse_math=False)
        _write_cells(axes, share, counts)
    figure.savefig(path, dpi=150)


def _write_cells(axes, shade: np.ndarray, texts: np.ndarray) -> None:
    for row, column in np.ndindex(shade.shape):
        color = "white" if shade[row, column] > 0.5 else "black"
        axes.text(column, row, texts[row, column], ha="center", va="center", color=color, fontsize=8)


def _figure(size: tuple[float, float]):
    # Not pyplot: no window system, and nothing global to clean up.
    return require("matplotlib.figure", "matplotlib").Figure(figsize=size, layout="constrained")
