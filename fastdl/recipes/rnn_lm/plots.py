"""The training curves as PNG, with the baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..plots import draw_epochs, draw_loss, figure


def plot_training(path: Path, runs: Sequence[dict], baselines: Mapping[str, dict]) -> None:
    """Left: the loss. Right: perplexity in training (line) and validation (dashed), the baselines' on test (dotted)."""
    whole = figure((10, 4))
    loss, perplexity = whole.subplots(1, 2)
    draw_loss(loss, runs)
    draw_epochs(perplexity, runs, "perplexity", "{}, training")
    draw_epochs(perplexity, runs, "validation_perplexity", "{}, validation", linestyle="--")
    for color, (name, scores) in zip(("C2", "C3"), baselines.items(), strict=True):
        perplexity.axhline(scores["perplexity"], color=color, linestyle=":", label=f"{name}, test")
    perplexity.set(ylabel="perplexity of a character", yscale="log")
    perplexity.legend()
    whole.savefig(path, dpi=150)
