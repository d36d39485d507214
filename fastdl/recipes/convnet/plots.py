"""The training curves, the scores of each class and the confusion matrix as PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..plots import draw_epochs, draw_loss, figure
from .report import COLUMNS, MAX_SHOWN, Scores


def plot_training(path: Path, runs: Sequence[dict]) -> None:
    """Left: the loss. Right: training accuracy."""
    whole = figure((10, 4))
    loss, accuracy = whole.subplots(1, 2)
    draw_loss(loss, runs)
    draw_epochs(accuracy, runs, "accuracy")
    accuracy.set(ylabel="training accuracy (augmented, with dropout)")
    whole.savefig(path, dpi=150)


def plot_scores(path: Path, rows: Scores, title: str) -> None:
    """Precision, recall and f1 of each class and on average, as coloured numbers."""
    names = [row["name"] for row in rows]
    values = np.array([[row[column] for column in COLUMNS[:3]] for row in rows])
    whole = figure((5, min(1.5 + 0.35 * len(names), 16)))
    axes = whole.subplots()
    axes.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set(title=title)
    axes.set_xticks(range(3), COLUMNS[:3])
    if len(names) <= MAX_SHOWN + 2:
        axes.set_yticks(range(len(names)), names, parse_math=False)
        _write_cells(axes, values, np.vectorize("{:.3f}".format)(values))
    whole.savefig(path, dpi=150)


def plot_confusion(path: Path, matrix: Sequence[Sequence[int]], classes: Sequence[str], title: str) -> None:
    """Row: true class, column: predicted class; colour is the share of the true class."""
    counts = np.asarray(matrix)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = min(3 + 0.45 * len(classes), 16)
    whole = figure((side, side))
    axes = whole.subplots()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="true", title=title)
    if len(classes) <= MAX_SHOWN:
        # Class names are folder names: "$" in one is not mathematics.
        axes.set_xticks(range(len(classes)), classes, rotation=90, parse_math=False)
        axes.set_yticks(range(len(classes)), classes, parse_math=False)
        _write_cells(axes, share, counts)
    whole.savefig(path, dpi=150)


def _write_cells(axes, shade: np.ndarray, texts: np.ndarray) -> None:
    for row, column in np.ndindex(shade.shape):
        color = "white" if shade[row, column] > 0.5 else "black"
        axes.text(column, row, texts[row, column], ha="center", va="center", color=color, fontsize=8)
