"""The pictures of a probe's report: few-shot curves, predicted against true values."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from launch.reports.pictures import BLUE, COLOURS, GREY, INK, tidy


def draw_shares(rows: Sequence[Mapping[str, Any]], chance: float | None) -> Figure:
    """Accuracy (or mean absolute error) against the fraction of labels: one panel per head, one line per feature type.

    Dots are seeds, the band is the 95 % interval of their mean.
    """
    heads = list(dict.fromkeys(row["head"] for row in rows if row["shares"]))
    names = list(dict.fromkeys(row["features"] for row in rows))
    figure = Figure(figsize=(0.6 + 4.2 * len(heads), 3.4))
    panels = figure.subplots(1, len(heads), squeeze=False, sharey=True)[0]
    size = 1 if chance is None else 100
    top = size * max(value for row in rows for point in row["shares"] for value in point["scores"])
    for axis, head in zip(panels, heads, strict=True):
        for row in (row for row in rows if row["head"] == head and row["shares"]):
            colour = COLOURS[names.index(row["features"]) % len(COLOURS)]
            points = row["shares"]
            x = [100 * point["share"] for point in points]
            axis.plot(x, [size * point["mean"] for point in points], color=colour, linewidth=1.6, label=row["features"])
            low, high = ([size * point.get(end, point["mean"]) for point in points] for end in ("low", "high"))
            axis.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
            for share, point in zip(x, points, strict=True):
                seeds = [size * value for value in point["scores"]]
                axis.plot([share] * len(seeds), seeds, ".", color=colour, markersize=4)
        if chance is not None:
            axis.axhline(100 * chance, color=GREY, linestyle=":", linewidth=1)
            axis.set_ylim(0, min(101, 1.2 * top))
        shares = sorted({100 * point["share"] for row in rows for point in row["shares"]})
        axis.set_xscale("log")
        axis.set_xticks(shares, [f"{share:g} %" for share in shares], fontsize=8)
        axis.set_xticks([], minor=True)
        axis.set_title(head, fontsize=10, color=INK)
        axis.set_xlabel("fraction of the labels", fontsize=8)
        tidy(axis)
    panels[0].set_ylabel("mean absolute error" if chance is None else "top-1, %", fontsize=8)
    panels[-1].legend(fontsize=7, frameon=False, loc="best")
    figure.tight_layout()
    return figure


def draw_values(truth: Sequence[float], predicted: Sequence[float]) -> Figure:
    """Predicted against true values."""
    figure = Figure(figsize=(4.6, 4.4))
    axis = figure.subplots()
    axis.plot(truth, predicted, ".", color=BLUE, markersize=4, alpha=0.6)
    ends = [min(truth), max(truth)]
    axis.plot(ends, ends, color=GREY, linewidth=1)
    axis.set_xlabel("true value", fontsize=9)
    axis.set_ylabel("predicted", fontsize=9)
    tidy(axis)
    figure.tight_layout()
    return figure
