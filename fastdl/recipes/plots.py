"""Figures of every recipe, and the curves of a training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .extras import require


def figure(size: tuple[float, float]):
    """An empty figure of `size` inches."""
    # Not pyplot: no window system, and nothing global to clean up.
    return require("matplotlib.figure", "matplotlib").Figure(figsize=size, layout="constrained")


def draw_loss(axes, runs: Sequence[dict]) -> None:
    """Each step's training loss (thin) and the epochs' means (thick, at the epoch's end)."""
    for color, run in zip(("C0", "C1"), runs, strict=False):
        epochs, steps = run["epochs"], run["step_losses"]
        at = np.arange(len(steps)) * len(epochs) / len(steps)
        axes.plot(at, steps, color=color, alpha=0.3, linewidth=0.8)
    draw_epochs(axes, runs, "loss")
    axes.set(ylabel="training loss (cross-entropy)", yscale="log")
    axes.legend()


def draw_epochs(axes, runs: Sequence[dict], name: str, label: str = "{}", **style: object) -> None:
    """One value of each epoch, at its end; `label` is formatted with the model's name."""
    for color, run in zip(("C0", "C1"), runs, strict=False):
        values = [epoch[name] for epoch in run["epochs"]]
        line = {"color": color, "marker": "o", "label": label.format(run["model"]), **style}
        axes.plot(1 + np.arange(len(values)), values, **line)
    axes.set(xlabel="epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)
