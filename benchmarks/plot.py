"""One picture of a run: how much faster than eager each provider is, case by case."""

from __future__ import annotations

from pathlib import Path

from benchmarks.report import Row

OURS = {"NCHW": "#0b6e4f", "NHWC": "#5fb59a"}
OTHERS = ("#c9c9c9", "#9a9a9a", "#e0a458", "#b5651d", "#7d4e24", "#6c8ebf", "#8064a2", "#555555")


def plot_rows(rows: list[Row], path: Path) -> bool:
    """Bars of time over eager's, one group a case; False without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    timed = [row for row in rows if row.over_eager is not None]
    if not timed:
        return False
    cases = list(dict.fromkeys((row.group, row.case) for row in timed))
    providers = list(dict.fromkeys((row.provider, row.layout) for row in timed))
    providers.sort(key=lambda provider: provider[0].split()[0] != "fastdl")
    grey = iter(OTHERS * 4)
    colours = {p: OURS[p[1]] if p[0] == "fastdl" and p[1] in OURS else next(grey) for p in providers}
    height = 0.8 / len(providers)
    figure, axes = pyplot.subplots(figsize=(9, 1 + 0.19 * len(cases) * len(providers)))
    for i, provider in enumerate(providers):
        found = {(row.group, row.case): row for row in timed if (row.provider, row.layout) == provider}
        at = [(j + i * height, found[case].over_eager) for j, case in enumerate(cases) if case in found]
        y, x = zip(*at, strict=True)
        bars = axes.barh(y, x, height, color=colours[provider], label=" ".join(provider), align="edge")
        axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=6)
    axes.axvline(1.0, color="black", linewidth=0.6)
    axes.set_yticks(
        [j + 0.4 for j in range(len(cases))], [f"{group}\n{case}" for group, case in cases], fontsize=7
    )
    axes.invert_yaxis()
    axes.set_xlabel("times as fast as eager in the first layout (medians of one run)")
    axes.set_title(f"{timed[0].device}, {timed[0].threads} threads, {timed[0].commit}", fontsize=9)
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return True
