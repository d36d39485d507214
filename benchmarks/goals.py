"""Goals: those that depend on the machine, and whether a row meets its own."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.row import Row
from fastdl import _extension

WORD = "bf16 "


def has_tiles() -> bool:
    return _extension.cpu_isa() == "amx"


def goal(vectors: float, tiles: float) -> float:
    """For CPUs that multiply by vectors, and for those with matrix tiles, where torch is nearer the limit."""
    return tiles if has_tiles() else vectors


def judge(rows: Sequence[Row]) -> None:
    """Writes into our rows whether they meet their goals, and how 16 bits compare with the same case in float32."""
    times = {(row.provider, row.layout, row.group, row.case): row.ms for row in rows if row.ours}
    for row in rows:
        if not row.ours or row.ms is None:
            continue
        if row.goal_float32 is not None:
            float32 = times.get((row.provider, row.layout, row.group.removeprefix(WORD), row.case))
            row.over_float32 = None if float32 is None else float32 / row.ms
        goals = [
            (row.goal, row.over_best),
            (row.goal_eager, row.over_eager),
            (row.goal_float32, row.over_float32),
            (row.goal_fraction, row.limit_fraction),
        ]
        goals = [(goal, ratio) for goal, ratio in goals if goal is not None and ratio is not None]
        if goals:
            row.goal_met = "yes" if all(ratio >= goal for goal, ratio in goals) else "no"
