"""One picture of a run: how much faster than eager each provider is, case by case."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path

from benchmarks.row import Row

OURS = {("fastdl", "NCHW"): "#0b6e4f", ("fastdl", "NHWC"): "#5fb59a"}
OTHERS = ("#cfcfcf", "#9a9a9a", "#e0a458", "#b5651d", "#7d4e24", "#6c8ebf", "#8064a2", "#c06c84")
INCHES_PER_GROUP = 2.3


def plot_rows(rows: list[Row], path: Path) -> bool:
    """Bars of eager's time over each provider's: a panel for each group, a cluster for each case.

    False where there is nothing to draw or no matplotlib.
    """
    timed = [row for row in rows if row.over_eager is not None]
    try:
        import matplotlib
    except ImportError:
        return False
    if not timed:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups = list(dict.fromkeys(row.group for row in timed))
    colours = _colours(timed)
    figure, panels = pyplot.subplots(
        len(groups), figsize=(11, 1 + INCHES_PER_GROUP * len(groups)), squeeze=False, layout="constrained"
    )
    for panel, group in zip(panels[:, 0], groups, strict=True):
        _draw(panel, [row for row in timed if row.group == group], colours)
        panel.set_title(group, fontsize=9, loc="left")
    handles = [pyplot.Rectangle((0, 0), 1, 1, color=colour) for colour in colours.values()]
    names = [" ".join(provider) for provider in colours]
    figure.legend(handles, names, fontsize=7, frameon=False, loc="outside right upper")
    figure.suptitle(
        f"Times as fast as eager NCHW, medians of one run. {timed[0].device}, {timed[0].threads} threads",
        fontsize=9,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return True


def _colours(rows: list[Row]) -> dict[tuple[str, str], str]:
    """Ours first, in green; everyone else in the order of their rows."""
    providers = list(dict.fromkeys((row.provider, row.layout) for row in rows))
    providers.sort(key=lambda provider: provider[0].split()[0] != "fastdl")
    others = cycle(OTHERS)
    return {provider: OURS.get(provider) or next(others) for provider in providers}


def _draw(panel, rows: list[Row], colours: dict[tuple[str, str], str]) -> None:
    cases = list(dict.fromkeys(row.case for row in rows))
    present = {(row.provider, row.layout) for row in rows}
    providers = [provider for provider in colours if provider in present]
    width = 0.85 / len(providers)
    for i, provider in enumerate(providers):
        mine = {row.case: row for row in rows if (row.provider, row.layout) == provider}
        at = [(j + (i + 0.5) * width, mine[case].over_eager) for j, case in enumerate(cases) if case in mine]
        bars = panel.bar(*zip(*at, strict=True), width, color=colours[provider])
        panel.bar_label(bars, fmt="%.1f", fontsize=6)
    panel.axhline(1.0, color="black", linewidth=0.6)
    panel.set_xticks([j + 0.425 for j in range(len(cases))], cases, fontsize=7)
    panel.tick_params(axis="x", length=0)
    panel.tick_params(axis="y", labelsize=7)
    panel.spines[["top", "right"]].set_visible(False)
