"""The report of `surprise`: accuracies beside every baseline, by property, and energy over time."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from launch.reports.page import Section, lay_out_table, write_report
from launch.reports.pictures import BLUE, INK, ORANGE, embed
from launch.seeing.surprise import Outcome

NOTE = (
    "Share of pairs in which the impossible video is more surprising, for the mean and the maximum over windows; AUROC "
    "of single videos; per cent with 95 % intervals from drawing groups with replacement. Chance is 50. Each method's "
    "context length was chosen on the validation groups. A baseline far from 50, on either side, means that the pairs "
    "give something away."
)
COLUMNS = {"pairs_mean": "pairs, mean", "pairs_max": "pairs, max", "groups_mean": "groups", "auroc": "AUROC"}


def write_page(path: Path, source: str, outcome: Outcome, pairs: str) -> None:
    """Write the page."""
    lines = [
        [html.escape(name), str(_context(outcome, found)), *(_share(found["all"][key]) for key in COLUMNS)]
        for name, found in outcome.methods.items()
    ]
    table = lay_out_table(["method", "context", *COLUMNS.values()], lines)
    properties = [name for name in outcome.methods["model"] if name != "all"]
    by_property = lay_out_table(
        ["method", *map(html.escape, properties)],
        [
            [html.escape(name), *(_share(found[own]["pairs_mean"]) for own in properties)]
            for name, found in outcome.methods.items()
        ],
    )
    minus = [[html.escape(name), _points(values)] for name, values in outcome.differences.items()]
    tested = outcome.methods["model"]["all"]["groups"]
    sections = [
        Section(f"{tested} groups tested, {outcome.validation} for the context length", NOTE, _scrolling(table)),
        Section("By what is violated", "Pairs, mean over windows.", _scrolling(by_property)),
        Section(
            "The model minus a baseline", "Percentage points of pairs, paired by group.",
            _scrolling(lay_out_table(["baseline", "difference"], minus)),
        ),
        Section("Energy over time", "Mean of each step of the window.", embed(draw_energies(outcome), "energies")),
    ]  # fmt: skip
    write_report(path, f"Surprise: {pairs}", source, sections)


def draw_energies(outcome: Outcome) -> Figure:
    """Mean energy of the hidden steps of possible and impossible videos."""
    figure = Figure(figsize=(6, 2.8))
    axis = figure.subplots()
    for (name, values), colour in zip(outcome.curves.items(), (BLUE, ORANGE), strict=True):
        axis.plot(range(1, len(values) + 1), values, color=colour, marker="o", markersize=3, label=name)
    axis.set_xlabel("step of the token grid", fontsize=8, color=INK)
    axis.set_ylabel("energy", fontsize=8, color=INK)
    axis.legend(frameon=False, fontsize=8)
    axis.grid(color="#e6e9ef")
    axis.tick_params(labelsize=7)
    figure.tight_layout()
    return figure


def result_lines(outcome: Outcome) -> list[list[str]]:
    """Rows of a text table: one per method."""
    lines = [["method", "context", *COLUMNS.values()]]
    for name, found in outcome.methods.items():
        shown = [_plain(found["all"][key]) for key in COLUMNS]
        lines.append([name, str(_context(outcome, found)), *shown])
    return lines


def property_lines(outcome: Outcome) -> list[list[str]]:
    """Rows of a text table: accuracy over pairs by property, one row per method."""
    properties = [name for name in outcome.methods["model"] if name != "all"]
    lines = [["method", *properties]]
    for name, found in outcome.methods.items():
        lines.append([name, *(_plain(found[own]["pairs_mean"]) for own in properties)])
    return lines


def _context(outcome: Outcome, found: Mapping[str, Mapping[str, Any]]) -> int:
    chosen: int = outcome.contexts[found["all"]["context_mean"]]
    return chosen


def _plain(values: Sequence[float]) -> str:
    return f"{100 * values[0]:.0f} ({100 * values[1]:.0f}-{100 * values[2]:.0f})"


def _share(values: Sequence[float]) -> str:
    return f"{100 * values[0]:.1f} <span>{100 * values[1]:.1f} to {100 * values[2]:.1f}</span>"


def _points(values: Sequence[float]) -> str:
    return f"{100 * values[0]:+.1f} <span>{100 * values[1]:+.1f} to {100 * values[2]:+.1f}</span>"


def _scrolling(table: str) -> str:
    """A table that scrolls by itself where the screen is narrower than it."""
    return f'<div style="overflow-x:auto">{table}</div>'
