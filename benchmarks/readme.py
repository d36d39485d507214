"""README.md's tables of one family on one machine: what stands between the markers is made from benchmarks/results.

<!-- results: conv_relu_maxpool-some-machine --> ... <!-- end of results -->
"""

from __future__ import annotations

import re
from dataclasses import asdict
from itertools import groupby
from pathlib import Path

from benchmarks.report import describe, markdown, read
from benchmarks.row import Row

BLOCK = re.compile(r"(<!-- results: (\S+) -->\n).*?(<!-- end of results -->)", re.DOTALL)


def filled(text: str, results: Path) -> str:
    """`text` with every block made anew."""
    return BLOCK.sub(
        lambda block: f"{block[1]}{_table(results / f'{block[2]}.json')}\n{block[3]}",
        text,
    )


def _table(path: Path) -> str:
    rows, limits = read(path)
    cases = [list(of_case) for _, of_case in groupby(rows, lambda row: (row.group, row.case))]
    layouts = " / ".join(dict.fromkeys(row.layout for row in rows if row.ours))
    head = ("", f"fastdl, ms ({layouts})", "eager, ms", "best rival, ms", "x eager", "x best rival")
    lost = [
        f"{row.group} {row.case} {row.layout}"
        for row in rows
        if row.over_best and row.over_best < 1 and row.ours
    ]
    return "\n\n".join(
        (
            f"{describe(asdict(rows[0]), limits)}; {rows[0].date}.",
            markdown(head, [_line(of_case) for of_case in cases]),
            f"Slower than the best rival: {', '.join(lost) or 'none'}.",
        )
    )


def _line(rows: list[Row]) -> tuple[str, ...]:
    """A layout whose outputs were refused shows why."""
    ours = [row for row in rows if row.ours]
    name = f"{ours[0].group} {ours[0].case}"
    of_layouts = " / ".join(row.status if row.ms is None else f"{row.ms:.2f}" for row in ours)
    timed = [row for row in ours if row.ms is not None]
    if not timed:
        return name, of_layouts, "", "", "", ""
    first = timed[0]
    return (
        name,
        of_layouts,
        _shown([first.over_eager and first.ms * first.over_eager]),
        f"{_shown([first.over_best and first.ms * first.over_best])} ({first.best_rival or 'none'})",
        _shown([row.over_eager for row in ours]),
        _shown([row.over_best for row in ours]),
    )


def _shown(numbers: list[float | None]) -> str:
    return " / ".join("-" if number is None else f"{number:.2f}" for number in numbers)
