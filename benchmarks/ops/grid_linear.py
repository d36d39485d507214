"""Shapes of linear outside the goal table; benchmarks/grid.py says how they are judged.

python -m benchmarks.ops.grid_linear [--mode inference|training|both] [--cases TEXT] [--out DIR]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.grid import AGAIN, run_grid
from benchmarks.ops.bench_linear import LAYOUT, LinearCase, onednn, ours, plain, prepared
from benchmarks.providers import Provider
from fastdl.testing.linear import Sample

# rows, in_features, out_features, activation
SHAPES = (
    (1, 16, 16, "relu"), (1, 64, 10, None), (1, 512, 512, "relu"), (1, 4096, 4096, "relu"), (1, 1000, 3000, "gelu"),
    (2, 256, 256, "silu"), (3, 777, 333, "tanh"), (4, 1024, 4096, "gelu"), (4, 64, 64, "sigmoid"),
    (8, 256, 1024, None), (8, 512, 2048, "relu"), (12, 96, 384, "gelu_tanh"), (16, 4096, 4096, None),
    (16, 784, 256, "relu"), (17, 65, 130, "relu"), (32, 100, 10, None), (32, 784, 512, "relu"),
    (32, 2048, 1000, None), (33, 555, 77, "silu"), (64, 64, 64, "relu"), (64, 512, 32, None),
    (64, 9216, 4096, "relu"), (64, 1024, 1024, "gelu"), (96, 300, 600, "tanh"), (100, 50, 200, "sigmoid"),
    (128, 768, 768, None), (128, 768, 3072, "gelu"), (128, 3072, 768, None), (197, 192, 768, "gelu"),
    (256, 1024, 1024, "relu"), (256, 256, 256, "silu"), (256, 4096, 64, "relu"), (512, 784, 256, "relu"),
    (512, 64, 2048, "gelu_tanh"), (1024, 32, 32, "relu"), (1024, 512, 512, "gelu"), (2048, 128, 128, "silu"),
    (4096, 64, 64, "relu"), (4096, 16, 4, "sigmoid"), (777, 333, 555, "relu"),
)  # fmt: skip


@dataclass(frozen=True)
class GridCase(LinearCase):
    """Eager, fastdl, oneDNN (it has no backward), and eager again."""

    def providers(
        self, inputs: list[Tensor | None], grad_output: Tensor | None, device: str
    ) -> list[Provider]:
        functions = {"eager": plain, "fastdl": ours}
        if not self.training and device == "cpu":
            functions["oneDNN"] = onednn
        functions[AGAIN] = plain
        return [
            Provider(name, LAYOUT, lambda f=f: prepared(f, inputs, self.sample.activation, grad_output))
            for name, f in functions.items()
        ]


def cases(modes: Sequence[str]) -> list[GridCase]:
    return [
        GridCase.of(mode, Sample((M,), K, N, activation), torch.float32, training=mode == "training")
        for M, K, N, activation in SHAPES
        for mode in modes
    ]


if __name__ == "__main__":
    sys.exit(run_grid("linear", cases))
