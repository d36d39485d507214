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
    """A case whose outputs were refused shows why."""
    ours = [row for row in rows if row.ours]
    name = f"{ours[0].group} {ours[0].case}"
    if ours[0].ms is None:
        return name, ours[0].status, "", "", "", ""
    rival = ours[0].ms * ours[0].over_best
    return (
        name,
        " / ".join(f"{row.ms:.2f}" for row in ours),
        f"{ours[0].ms * ours[0].over_eager:.2f}",
        f"{rival:.2f} ({ours[0].best_rival})",
        " / ".join(f"{row.over_eager:.2f}" for row in ours),
        " / ".join(f"{row.over_best:.2f}" for row in ours),
    )
