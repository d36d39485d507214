"""Sizes of lstm, gru and rnn outside the goal table; benchmarks/grid.py says how they are judged.

python -m benchmarks.ops.grid_rnn [--mode inference|training|both] [--cases TEXT] [--out DIR]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.grid import AGAIN, run_grid
from benchmarks.ops.bench_rnn import RnnCase, Tensors
from benchmarks.providers import Provider

# T, B, I, H: hidden sizes 16 to 1024 and odd ones, batches 1 to 256, lengths 1 to 512
SIZES = (
    (1, 1, 16, 16),
    (1, 64, 64, 64),
    (1, 256, 128, 128),
    (2, 3, 17, 33),
    (4, 256, 64, 64),
    (8, 1, 1024, 1024),
    (8, 16, 1024, 1024),
    (16, 32, 100, 77),
    (16, 128, 128, 256),
    (32, 1, 512, 512),
    (32, 4, 300, 301),
    (32, 256, 32, 32),
    (64, 2, 64, 65),
    (64, 16, 256, 128),
    (100, 7, 50, 150),
    (128, 1, 16, 16),
    (128, 32, 40, 48),
    (256, 1, 128, 128),
    (256, 8, 80, 200),
    (512, 1, 64, 64),
    (512, 4, 32, 96),
)
KINDS = ("LSTM", "GRU", "RNN")


@dataclass(frozen=True)
class GridCase(RnnCase):
    """Eager, eager again and fastdl."""

    def providers(self, tensors: Tensors, device: str) -> list[Provider]:
        return [
            Provider("eager", "TBI", tensors.eager),
            Provider("fastdl", "TBI", tensors.fastdl),
            Provider(AGAIN, "TBI", tensors.eager),
        ]


def cases(modes: Sequence[str]) -> list[GridCase]:
    kinds = [*KINDS, *(f"{kind}Cell" for kind in KINDS)]
    return [
        GridCase.of(mode, kind, sizes, training=mode == "training")
        for kind in kinds
        for sizes in SIZES
        if sizes[0] == 1 or not kind.endswith("Cell")
        for mode in modes
    ]


if __name__ == "__main__":
    sys.exit(run_grid("rnn", cases))
