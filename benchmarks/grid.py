"""Shapes outside the goal table: fastdl must never be slower than a rival by more than 5% or 3 us.

    python -m benchmarks.ops.grid_<family> [--mode inference|training|both] [--cases TEXT] [--part I/N] [--merge]

A grid's case has the providers eager, fastdl, other rivals if it has any, and last eager again under another name:
how often that would break the rule is the noise of the machine. A row above the limit, or near it, is timed again for
longer, and that is what counts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks import machine, report
from benchmarks.providers import Case
from benchmarks.row import Row
from benchmarks.run import ROOT, Effort, measure

SLACK, SLACK_MS = 0.05, 0.003
AGAIN = "eager again"
SCREEN = Effort(rounds=9, least_rounds=5, seconds=0.4, least_seconds=0.003)
CERTAIN = Effort(rounds=41, least_rounds=15, seconds=1.5, least_seconds=0.008)


def slower_than_allowed(row: Row, rival: Row, slack: float = SLACK, slack_ms: float = SLACK_MS) -> bool:
    return row.ms > rival.ms + max(slack * rival.ms, slack_ms)


def doubt(rows: list[Row]) -> Effort | None:
    """Time again what breaks the rule or comes near it, eager against itself included."""
    if any(row.ms is None for row in rows):
        return None
    rivals = [row for row in rows if not row.ours and row.provider != AGAIN]
    judged = [row for row in rows if row.ours or row.provider == AGAIN]
    near = any(
        slower_than_allowed(row, rival, SLACK / 2, SLACK_MS / 2)
        for row in judged
        for rival in (rivals if row.ours else rivals[:1])
    )
    return CERTAIN if near else None


def run_grid(
    family: str, cases: Callable[[Sequence[str]], Sequence[Case]], argv: Sequence[str] | None = None
) -> int:
    """The command line of a grid; exit status 1 if a case is slower than allowed or refused."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mode", choices=("inference", "training", "both"), default="both")
    parser.add_argument("--cases", default="", metavar="TEXT", help="part of a name")
    parser.add_argument("--part", default="1/1", metavar="I/N", help="every N-th case from the I-th on")
    parser.add_argument("--merge", action="store_true", help="keep other cases' rows of the last results")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, help="default benchmarks/results, for part of a run runs/bench")
    arguments = parser.parse_args(argv)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error(f"torch {torch.__version__} finds no GPU")
    modes = ("inference", "training") if arguments.mode == "both" else (arguments.mode,)
    part, parts = map(int, arguments.part.split("/"))
    every = cases(("inference", "training"))
    chosen = [case for case in cases(modes) if arguments.cases in f"{case.group}/{case.name}"][
        part - 1 :: parts
    ]
    facts, limits = machine.facts(arguments.device), machine.limits(arguments.device)
    whole = arguments.merge or len(chosen) == len(every)
    out = arguments.out or ROOT / ("benchmarks/results" if whole else "runs/bench")
    stem = out / f"grid-{family}-{facts['machine']}"
    print(report.describe(facts, limits), flush=True)
    begin, rows = time.perf_counter(), []
    for i, case in enumerate(chosen):
        measured = measure(family, case, arguments.device, facts, limits, SCREEN, doubt=doubt)
        rows += measured
        print(f"[{i + 1}/{len(chosen)}, {time.perf_counter() - begin:.0f} s] {_line(measured)}", flush=True)
    if arguments.merge:
        rows = report.merged(stem, rows, [f"{case.group}/{case.name}" for case in every])
    report.write(rows, limits, stem, plot=False)
    print(f"\n{summary(rows)}\n{time.perf_counter() - begin:.0f} s, written to {stem}.*")
    return 1 if violations(rows) or any(row.status.startswith("refused") for row in rows) else 0


def violations(rows: list[Row], provider: str = "fastdl") -> list[tuple[Row, Row]]:
    """(row, rival's row) of each case in which the provider is slower than allowed; eager again only against eager."""
    found = []
    for row in rows:
        if row.provider != provider or row.ms is None:
            continue
        rivals = [
            r
            for r in rows
            if (r.group, r.case) == (row.group, row.case) and not r.ours and r.ms is not None
            and r.provider != AGAIN and (row.ours or r.provider == "eager")
        ]  # fmt: skip
        found += [(row, rival) for rival in rivals if slower_than_allowed(row, rival)]
    return found


def summary(rows: list[Row]) -> str:
    """How many shapes, how fast, and every one that is slower than allowed or refused."""
    ours = [row for row in rows if row.ours]
    timed = [row for row in ours if row.ms is not None]
    broken = violations(rows)
    ratios = sorted(row.over_eager for row in timed)
    rivals = dict.fromkeys(row.provider for row in rows if not row.ours and row.provider != AGAIN)
    lines = [
        f"{len(ours)} cases, {len(broken)} slower than {' or '.join(rivals)} by more than 5% or 3 us "
        f"({len(violations(rows, AGAIN))} for eager against itself)"
    ]
    if ratios:
        lines.append(
            f"x eager: least {ratios[0]:.2f}, median {ratios[len(ratios) // 2]:.2f}, most {ratios[-1]:.2f}"
        )
    lines += [
        f"  slower: {row.group}/{row.case} {row.algorithm}: {row.ms:.4f} ms, {rival.provider} {rival.ms:.4f} ms"
        for row, rival in broken
    ]
    lines += [f"  {row.group}/{row.case}: {row.status}" for row in ours if row.ms is None]
    return "\n".join(lines)


def _line(rows: list[Row]) -> str:
    fused = next(row for row in rows if row.ours)
    name = f"{fused.group}/{fused.case}"
    if any(row.ms is None for row in rows):
        return f"{name}: {next(row.status for row in rows if row.ms is None)}"
    mark = " SLOWER" if violations(rows) else ""
    others = " and ".join(f"{row.provider} {row.ms:.4f}" for row in rows if not row.ours)
    return (
        f"{name}: {fused.ms:.4f} ms, {others}, "
        f"{fused.over_eager:.2f}x, {fused.algorithm}, {fused.rounds} rounds{mark}"
    )
