"""Shapes outside the goal table: conv_relu_maxpool must never be slower than eager by more than 5% or 3 us.

    python -m benchmarks.ops.grid_conv_relu_maxpool [--mode inference|training|both] [--cases TEXT] [--out DIR]

Eager is timed twice, under two names: how often the second would break the rule is the noise of the machine. A
row above the limit, or near it, is timed again for longer, and that is what counts.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import machine, report
from benchmarks.ops.bench_conv_relu_maxpool import ConvCase, Tensors
from benchmarks.providers import Provider
from benchmarks.report import Row
from benchmarks.run import ROOT, Effort, measure
from fastdl.testing.conv_relu_maxpool import Sample

SLACK, SLACK_MS = 0.05, 0.003
AGAIN = "eager again"
SCREEN = Effort(rounds=9, least_rounds=5, seconds=0.4, least_seconds=0.003)
CERTAIN = Effort(rounds=41, least_rounds=15, seconds=1.5, least_seconds=0.008)


def _conv(
    N: int, C: int, size: tuple[int, int], C_out: int, K: int | tuple[int, int] = 3, **kwargs: object
) -> Sample:
    return Sample(N, C, *size, C_out, (K, K) if isinstance(K, int) else K, kwargs=kwargs)


GEOMETRIES = (
    # batch 1 to 256, sizes that are no multiple of a tile
    _conv(1, 16, (15, 17), 24, padding=1, pool_size=2),
    _conv(1, 64, (7, 7), 64, padding=1),
    _conv(1, 3, (224, 224), 16, padding=1, pool_size=2),
    _conv(2, 48, (33, 31), 80, padding=1, pool_size=2),
    _conv(4, 128, (14, 14), 128, padding=1, pool_size=2),
    _conv(8, 19, (29, 37), 23, padding=1, pool_size=2),
    _conv(16, 96, (13, 13), 160, padding=1),
    _conv(32, 8, (28, 28), 8, padding=1, pool_size=2),
    _conv(128, 16, (12, 12), 32, padding=1, pool_size=2),
    _conv(256, 1, (28, 28), 32, padding=1, pool_size=2),
    _conv(256, 32, (7, 7), 64, padding=1, pool_size=2),
    _conv(256, 3, (32, 32), 16, padding=1),
    _conv(1, 8, (5, 5), 8, pool_size=2),
    _conv(1, 256, (14, 14), 256, padding=1),
    _conv(1, 512, (7, 7), 512, padding=1, pool_size=2),
    # kernels 1x1 to 7x7, and not square
    _conv(8, 64, (28, 28), 64, 1),
    _conv(1, 128, (20, 20), 32, 1, pool_size=2),
    _conv(64, 3, (30, 30), 16, 1, pool_size=2),
    _conv(16, 12, (24, 24), 20, 2, pool_size=2),
    _conv(8, 16, (27, 27), 32, 4, padding=2, pool_size=2),
    _conv(32, 1, (28, 28), 6, 5, padding=2, pool_size=2),
    _conv(32, 6, (14, 14), 16, 5, pool_size=2),
    _conv(4, 32, (27, 27), 48, 5, padding=2, pool_size=3, pool_stride=2),
    _conv(4, 16, (30, 30), 16, 6, padding=3),
    _conv(2, 3, (112, 112), 32, 7, stride=2, padding=3, pool_size=3, pool_stride=2, pool_padding=1),
    _conv(8, 8, (20, 20), 16, 7, padding=3, pool_size=2),
    _conv(4, 32, (17, 40), 32, (1, 7), padding=(0, 3), pool_size=2),
    _conv(4, 32, (40, 17), 32, (3, 1), padding=(1, 0), pool_size=(2, 1)),
    # strides
    _conv(8, 32, (28, 28), 64, stride=2, padding=1),
    _conv(1, 3, (65, 65), 24, stride=2, padding=1, pool_size=2),
    _conv(16, 64, (15, 15), 64, 1, stride=2),
    _conv(2, 3, (227, 227), 16, 5, stride=4, pool_size=3, pool_stride=2),
    _conv(4, 24, (31, 30), 24, stride=(2, 1), padding=1, pool_size=2),
    # groups and depthwise
    _conv(8, 32, (28, 28), 32, groups=32, padding=1),
    _conv(8, 64, (14, 14), 64, groups=64, padding=1, pool_size=2),
    _conv(4, 48, (20, 20), 96, groups=4, padding=1, pool_size=2),
    # dilation
    _conv(4, 32, (24, 24), 32, dilation=2, padding=2, pool_size=2),
    _conv(2, 16, (41, 39), 32, dilation=3, padding=3),
    # pools: ceil_mode, overlapping, dilated, padded, wide
    _conv(8, 32, (23, 25), 32, padding=1, pool_size=2, ceil_mode=True),
    _conv(4, 16, (21, 21), 24, pool_size=3, pool_stride=2, ceil_mode=True),
    _conv(4, 32, (28, 28), 32, padding=1, pool_size=3, pool_stride=1, pool_padding=1),
    _conv(2, 16, (30, 30), 16, padding=1, pool_size=2, pool_dilation=2, pool_stride=2),
    _conv(4, 24, (32, 32), 40, padding=1, pool_size=4),
    _conv(8, 16, (8, 8), 32, padding=1, pool_size=8),
    # no padding, no bias
    _conv(16, 32, (26, 26), 64, pool_size=2),
    dataclasses.replace(_conv(16, 48, (18, 18), 48, padding=1, pool_size=2), bias=False),
)


@dataclasses.dataclass(frozen=True)
class GridCase(ConvCase):
    """Eager, eager again and fastdl, all in the sample's layout."""

    def providers(self, tensors: Tensors, device: str) -> list[Provider]:
        layout = "NHWC" if self.sample.channels_last else "NCHW"
        return [
            Provider("eager", layout, tensors.eager(layout)),
            Provider("fastdl", layout, tensors.fastdl(layout)),
            Provider(AGAIN, layout, tensors.eager(layout)),
        ]


def cases(modes: Sequence[str]) -> list[GridCase]:
    found = []
    for sample in GEOMETRIES:
        for channels_last in (False, True):
            sample = dataclasses.replace(sample, channels_last=channels_last)
            for mode in modes:
                case = GridCase.of(mode, sample, training=mode == "training")
                found.append(dataclasses.replace(case, name=str(sample)))
    return found


def slower_than_allowed(row: Row, eager: Row, slack: float = SLACK, slack_ms: float = SLACK_MS) -> bool:
    return row.ms > eager.ms + max(slack * eager.ms, slack_ms)


def doubt(rows: list[Row]) -> Effort | None:
    """Time again what breaks the rule or comes near it, eager against itself included."""
    if any(row.ms is None for row in rows):
        return None
    eager, fused, again = rows
    near = any(slower_than_allowed(row, eager, SLACK / 2, SLACK_MS / 2) for row in (fused, again))
    return CERTAIN if near else None


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mode", choices=("inference", "training", "both"), default="both")
    parser.add_argument("--cases", default="", metavar="TEXT", help="part of a name")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, help="default benchmarks/results, for part of a run runs/bench")
    arguments = parser.parse_args(argv)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error(f"torch {torch.__version__} finds no GPU")
    modes = ("inference", "training") if arguments.mode == "both" else (arguments.mode,)
    chosen = [case for case in cases(modes) if arguments.cases in f"{case.group}/{case.name}"]
    facts, limits = machine.facts(arguments.device), machine.limits(arguments.device)
    out = arguments.out or ROOT / ("benchmarks/results" if len(chosen) == len(cases(modes)) else "runs/bench")
    stem = out / f"grid-conv_relu_maxpool-{facts['machine']}"
    print(report.describe(facts, limits), flush=True)
    begin, rows = time.perf_counter(), []
    for i, case in enumerate(chosen):
        measured = measure("conv_relu_maxpool", case, arguments.device, facts, limits, SCREEN, doubt=doubt)
        rows += measured
        print(f"[{i + 1}/{len(chosen)}, {time.perf_counter() - begin:.0f} s] {_line(measured)}", flush=True)
    report.write(rows, limits, stem, plot=False)
    print(f"\n{summary(rows)}\n{time.perf_counter() - begin:.0f} s, written to {stem}.*")
    return 1 if violations(rows) or any(row.status.startswith("refused") for row in rows) else 0


def violations(rows: list[Row], provider: str = "fastdl") -> list[tuple[Row, Row]]:
    """(row, eager's row) of each case in which the provider is slower than allowed."""
    eager = {(row.group, row.case): row for row in rows if row.provider == "eager"}
    pairs = [
        (row, eager[row.group, row.case]) for row in rows if row.provider == provider and row.ms is not None
    ]
    return [(row, base) for row, base in pairs if slower_than_allowed(row, base)]


def summary(rows: list[Row]) -> str:
    """How many shapes, how fast, and every one that is slower than allowed or refused."""
    ours = [row for row in rows if row.ours]
    timed = [row for row in ours if row.ms is not None]
    broken = violations(rows)
    ratios = sorted(row.over_eager for row in timed)
    lines = [
        f"{len(ours)} cases, {len(broken)} slower than eager by more than 5% or 3 us "
        f"({len(violations(rows, AGAIN))} for eager against itself)"
    ]
    if ratios:
        lines.append(
            f"x eager: least {ratios[0]:.2f}, median {ratios[len(ratios) // 2]:.2f}, most {ratios[-1]:.2f}"
        )
    lines += [
        f"  slower: {row.group}/{row.case} {row.algorithm}: {row.ms:.4f} ms, eager {base.ms:.4f} ms"
        for row, base in broken
    ]
    lines += [f"  {row.group}/{row.case}: {row.status}" for row in ours if row.ms is None]
    return "\n".join(lines)


def _line(rows: list[Row]) -> str:
    eager, fused, again = rows
    name = f"{fused.group}/{fused.case}"
    if any(row.ms is None for row in rows):
        return f"{name}: {next(row.status for row in rows if row.ms is None)}"
    mark = " SLOWER" if slower_than_allowed(fused, eager) else ""
    return (
        f"{name}: {fused.ms:.4f} ms, eager {eager.ms:.4f} and {again.ms:.4f}, "
        f"{fused.over_eager:.2f}x, {fused.algorithm}, {fused.rounds} rounds{mark}"
    )


if __name__ == "__main__":
    sys.exit(main())
