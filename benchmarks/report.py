"""Rows of results: terminal table, CSV, JSON and plot."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path

from benchmarks.plot import plot_rows
from benchmarks.row import Row


def describe(facts: Mapping[str, str], limits: Mapping[str, float]) -> str:
    """One line about the machine, and the limits as far as they are known."""
    peaks = ", ".join(
        f"{name} {limits[name]:.0f} GF/s" for name in ("float32", "bfloat16", "float16") if name in limits
    )
    line = (
        f"{facts['device']}, {facts['threads']} threads, {facts['isa']}, torch {facts['torch']}, "
        f"commit {facts['commit']}, load {facts['load']}"
    )
    return f"{line}; peak {peaks}; copy {limits['copy']:.0f} GB/s" if limits else line


def case_lines(rows: list[Row]) -> str:
    """The providers of one case, one a line."""
    lines = []
    for row in rows:
        name = f"    {row.provider + ' ' + row.layout:26s}"
        if row.ms is None:
            lines.append(f"{name} {row.status}")
            continue
        ratio = f"{row.over_eager:5.2f}x eager  " if row.over_eager is not None else ""
        ratio += f"{row.over_best:5.2f}x best" if row.over_best is not None else ""
        limit = f"{row.limit_fraction or 0:.2f} of peak"
        if row.copy_fraction is not None:
            limit = f"{row.copy_fraction:.2f} of copy"
        saved = f"  saves {_count(row.saved_bytes)} B" if row.saved_bytes is not None else ""
        peak = f"  +{row.peak_mib:.1f} MiB" if row.peak_mib is not None else ""
        lines.append(
            f"{name} {row.ms:9.3f} ms [{row.ms_p20:.3f}, {row.ms_p80:.3f}]  {ratio}  "
            f"{limit}  error {row.error:.1e}{peak}{saved}  {row.algorithm}"
        )
    return "\n".join(lines)


HEAD = (
    "case", "fastdl", "ms", "eager ms", "x eager", "best other", "ms", "x best", "goal", "met", "of peak", "MiB",
    "saves B",
)  # fmt: skip


def lines(rows: list[Row]) -> list[tuple[str, ...]]:
    """One line for each of our rows, in the order of HEAD; refused cases too."""
    found = []
    for row in (row for row in rows if row.ours):
        name = f"{row.group}: {row.case}"
        if row.ms is None:
            found.append((name, row.layout, row.status, *[""] * (len(HEAD) - 3)))
            continue
        found.append(
            (
                name,
                " ".join(
                    filter(None, (row.provider.removeprefix("fastdl").strip(), row.layout, row.algorithm))
                ),
                f"{row.ms:.3f}",
                f"{row.ms * row.over_eager:.3f}" if row.over_eager else "",
                f"{row.over_eager:.2f}" if row.over_eager else "",
                row.best_rival,
                f"{row.ms * row.over_best:.3f}" if row.over_best else "",
                f"{row.over_best:.2f}" if row.over_best else "",
                goals_of(row),
                row.goal_met,
                f"{row.limit_fraction:.2f}" if row.limit_fraction else "",
                f"{row.peak_mib:.1f}" if row.peak_mib is not None else "",
                _count(row.saved_bytes) if row.saved_bytes is not None else "",
            )
        )
    return found


def goals_of(row: Row) -> str:
    """What was asked of a row."""
    goals = (
        f"{row.goal:g}x best" if row.goal else "",
        f"{row.goal_eager:g}x eager" if row.goal_eager else "",
        f"{row.goal_float32:g}x own float32 ({row.over_float32 or 0:.2f})" if row.goal_float32 else "",
        f"{row.goal_fraction:g} of peak" if row.goal_fraction else "",
    )
    return ", ".join(filter(None, goals))


def _count(value: float) -> str:
    return f"{value:.2f}" if value < 1000 else f"{value:,.0f}"


def table(rows: list[Row]) -> str:
    """What fastdl won and lost, aligned for a terminal."""
    cells = [HEAD, *lines(rows)]
    # a refusal is longer than a column
    widths = [max(len(line[i]) for line in cells if i != 2 or len(line[i]) < 12) for i in range(len(HEAD))]
    padded = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in cells)
    return "\n".join("  ".join(line).rstrip() for line in padded)


def markdown(head: tuple[str, ...], body: list[tuple[str, ...]]) -> str:
    """A table; numbers to the right would need a column type, so all is to the left."""
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ("---",) * len(head), *body))


def write(rows: list[Row], limits: Mapping[str, float], stem: Path, plot: bool = True) -> None:
    """<stem>.csv, <stem>.json and, with matplotlib, <stem>.png."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{stem}.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)])
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    content = {"limits": dict(limits), "rows": [asdict(row) for row in rows]}
    Path(f"{stem}.json").write_text(json.dumps(content, indent=1) + "\n")
    if plot:
        plot_rows(rows, Path(f"{stem}.png"))


def read(path: Path) -> tuple[list[Row], dict[str, float]]:
    """What `write` wrote as JSON."""
    content = json.loads(path.read_text())
    return [Row(**row) for row in content["rows"]], content["limits"]


def read_csv(path: Path) -> list[Row]:
    """The rows of what `write` wrote as CSV."""
    numbers = {field.name: float for field in fields(Row) if "float" in field.type}
    numbers |= {field.name: int for field in fields(Row) if "int" in field.type}

    def value(name: str, text: str) -> object:
        if name not in numbers:
            return text
        return numbers[name](text) if text else None

    with open(path, newline="") as file:
        return [
            Row(**{name: value(name, text) for name, text in line.items()}) for line in csv.DictReader(file)
        ]


def merged(stem: Path, rows: list[Row], order: Sequence[str]) -> list[Row]:
    """`rows`, and what <stem>.json has of other cases: a table measured in pieces. `order` names group/case."""
    path = Path(f"{stem}.json")
    measured = {(row.group, row.case) for row in rows}
    kept = read(path)[0] if path.exists() else []
    kept = [row for row in kept if (row.group, row.case) not in measured]
    places = {name: i for i, name in enumerate(order)}
    found = [row for row in [*kept, *rows] if f"{row.group}/{row.case}" in places]
    return sorted(found, key=lambda row: places[f"{row.group}/{row.case}"])
