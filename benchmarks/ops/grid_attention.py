"""Shapes of attention outside the goal table; benchmarks/grid.py says how they are judged.

python -m benchmarks.ops.grid_attention [--mode inference|training|both] [--cases TEXT] [--out DIR]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks.grid import AGAIN, run_grid
from benchmarks.ops.bench_attention import AttentionCase
from benchmarks.providers import Provider
from fastdl.testing.attention import Sample

# B, H, L_q, L_k, D, and what else
SHAPES = (
    (1, 1, 1, 1, 16, ""), (4, 8, 1, 1, 64, ""), (1, 8, 2, 2, 64, "causal"), (2, 2, 3, 5, 24, ""),
    (1, 4, 8, 8, 32, ""), (1, 12, 16, 16, 64, ""), (16, 16, 16, 16, 64, "causal"), (64, 4, 16, 16, 32, ""),
    (32, 8, 10, 10, 40, ""), (1, 1, 32, 32, 16, ""), (1, 8, 32, 32, 64, "causal"), (4, 4, 33, 33, 40, ""),
    (64, 4, 32, 32, 16, "mask"), (1, 4, 49, 49, 32, "bias"), (64, 4, 49, 49, 32, ""), (1, 12, 64, 64, 64, ""),
    (8, 8, 64, 64, 64, "causal"), (1, 12, 77, 77, 64, "causal"), (16, 8, 100, 100, 24, "keys"),
    (1, 1, 128, 128, 256, ""), (1, 2, 128, 128, 80, ""), (4, 4, 128, 128, 128, "keys"),
    (8, 16, 128, 128, 32, "causal"), (1, 3, 197, 197, 64, ""), (1, 16, 257, 257, 80, ""),
    (1, 8, 256, 256, 40, ""), (1, 4, 256, 256, 96, "mask"), (8, 8, 256, 256, 64, "causal"),
    (2, 2, 256, 256, 256, ""), (1, 8, 384, 384, 64, "keys"), (1, 4, 512, 512, 96, ""),
    (1, 8, 512, 512, 128, "causal"), (2, 4, 500, 500, 24, "causal"), (1, 1, 512, 512, 16, ""),
    (1, 8, 1024, 1024, 40, ""), (1, 2, 1024, 1024, 64, "mask"), (1, 1, 1024, 1024, 256, "causal"),
    (1, 2, 2048, 2048, 32, ""), (1, 1, 2048, 2048, 80, "causal"), (1, 1, 4096, 4096, 16, ""),
    (1, 1, 4096, 4096, 64, "causal"), (1, 8, 4096, 77, 40, ""), (2, 8, 64, 256, 64, ""),
    (4, 8, 256, 64, 64, "keys"), (1, 4, 16, 1024, 64, ""), (2, 4, 100, 850, 32, ""), (1, 8, 5, 4096, 64, ""),
    (1, 8, 300, 16, 128, ""), (2, 4, 64, 128, 64, "causal"), (1, 4, 128, 48, 96, "causal"),
    (1, 2, 77, 4096, 24, ""),
)  # fmt: skip

# B, H, H_kv, L_q, L_k, D, and what else
GROUPED = (
    (1, 8, 2, 128, 128, 64, "causal"), (2, 8, 4, 64, 64, 80, ""), (1, 32, 8, 256, 256, 64, "causal"),
    (1, 8, 1, 512, 512, 64, "causal"), (4, 4, 2, 65, 65, 24, "mask"), (2, 4, 1, 20, 300, 40, ""),
    (1, 32, 8, 1, 2048, 128, ""), (4, 16, 1, 1, 1024, 64, ""), (16, 8, 2, 1, 256, 64, "keys"),
    (1, 8, 4, 1, 64, 96, ""),
)  # fmt: skip

DECODE = (
    (1, 12, 1, 16, 64, ""), (1, 8, 1, 128, 64, ""), (1, 32, 1, 512, 128, ""), (8, 8, 1, 1024, 64, "keys"),
    (64, 4, 1, 64, 32, ""), (256, 1, 1, 100, 24, ""), (1, 1, 1, 4096, 256, ""), (32, 8, 1, 300, 80, ""),
)  # fmt: skip

HALF = (
    (1, 8, 1, 128, 128, 64, "causal"), (8, 8, 8, 64, 64, 64, ""), (64, 4, 4, 49, 49, 32, ""),
    (1, 2, 2, 512, 512, 128, "causal"), (1, 3, 3, 197, 197, 80, "keys"), (1, 32, 8, 1, 1024, 128, ""),
    (8, 8, 8, 1, 300, 64, ""),
)  # fmt: skip


def sample(B: int, H: int, H_kv: int, L_q: int, L_k: int, D: int, what: str) -> Sample:
    """`what`: "causal" (aligned at the top left), a bool mask of "keys" or of pairs ("mask"), or a "bias"."""
    plain = Sample(H=H, D=D, B=B, L_q=L_q, L_k=L_k, H_kv=H_kv if H_kv != H else 0)
    options = {
        "": {},
        "causal": {"call": {"causal": "top_left"}},
        "keys": {"mask": (B, 1, 1, L_k)},
        "mask": {"mask": (1, 1, L_q, L_k)},
        "bias": {"bias": (1, H, L_q, L_k)},
    }
    return replace(plain, **options[what])


SAMPLES = {
    torch.float32: (
        *(sample(B, H, H, *others) for B, H, *others in SHAPES + DECODE),
        *(sample(*sizes) for sizes in GROUPED),
    ),
    torch.bfloat16: tuple(sample(*sizes) for sizes in HALF),
    torch.float16: tuple(sample(*sizes) for sizes in HALF[1:2] + HALF[-2:]),
}


@dataclass(frozen=True)
class GridCase(AttentionCase):
    """Eager (torch's scaled_dot_product_attention), fastdl, and eager again."""

    def providers(
        self, tensors: list[Tensor | None], mask: Tensor | None, grad_output: Tensor | None
    ) -> list[Provider]:
        eager, ours, *_ = super().providers(tensors, mask, grad_output)
        return [eager, ours, replace(eager, name=AGAIN)]


def cases(modes: Sequence[str]) -> list[GridCase]:
    """One query on many keys is decoding: inference alone."""
    words = {torch.float32: "", torch.bfloat16: "bf16 ", torch.float16: "fp16 "}
    return [
        GridCase.of(words[dtype] + mode, one, dtype, mode == "training")
        for dtype, samples in SAMPLES.items()
        for one in samples
        for mode in modes
        if mode == "inference" or one.L_q > 1 or one.L_k == 1
    ]


if __name__ == "__main__":
    sys.exit(run_grid("attention", cases))
