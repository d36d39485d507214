"""The training curves, and what each symbol attended to, as PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..plots import draw_epochs, draw_loss, figure


def plot_training(path: Path, runs: Sequence[dict]) -> None:
    """Left: the loss in training and validation (dashed). Right: error rates of validation."""
    whole = figure((10, 4))
    loss, errors = whole.subplots(1, 2)
    draw_loss(loss, runs)
    draw_epochs(loss, runs, "validation_loss", "{}, validation", linestyle="--")
    draw_epochs(errors, runs, "validation_word_error_rate", "{}, words")
    draw_epochs(errors, runs, "validation_symbol_error_rate", "{}, symbols", linestyle="--")
    errors.set(ylabel="error rate", ylim=(0, None))
    for axes in (loss, errors):
        axes.legend()
    whole.savefig(path, dpi=150)


@torch.no_grad()
def cross_attention(model: nn.Module, source: Tensor, target: Tensor) -> Tensor:
    """[layers, H, T, S]: what each target token of one pair attended to in the source."""
    given = []
    handles = [
        layer.multihead_attn.register_forward_pre_hook(
            lambda module, args, kwargs: given.append((module, args[:3])), with_kwargs=True
        )
        for layer in model.decoder
    ]
    try:
        model.eval()(source[None], target[None])
    finally:
        for handle in handles:
            handle.remove()
    weights = [module(*args, average_attn_weights=False)[1][0] for module, args in given]
    return torch.stack(weights).cpu()


def plot_attention(path: Path, weights: Tensor, letters: str, symbols: Sequence[str]) -> None:
    """A map for each layer (row) and head (column): symbols down, letters across, the darker the more."""
    layers, heads, *_ = weights.shape
    whole = figure((2.6 * heads, 2.8 * layers))
    for i, row in enumerate(whole.subplots(layers, heads, squeeze=False)):
        for j, axes in enumerate(row):
            axes.imshow(weights[i, j].numpy(), cmap="Blues", vmin=0, vmax=1, aspect="auto")
            axes.set_title(f"layer {i + 1}, head {j + 1}", fontsize=8)
            axes.set_xticks(range(len(letters)), letters, parse_math=False, fontsize=7)
            axes.set_yticks(range(len(symbols)), symbols, parse_math=False, fontsize=7)
    whole.savefig(path, dpi=150)
