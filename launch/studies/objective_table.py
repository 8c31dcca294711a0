"""What a comparison of objectives found: one table and one figure.

A row is a choice, or a baseline; a column a head, at all labels or a share of them, on the reported set or on another
one (transfer). Values are top-1, their mean over seeds, and the lowest and highest seed.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from probes.results import read_results
from probes.tables import to_markdown

FEW, TRANSFER = " of labels", ": "  # in the name of a column
DIVERGED = "diverged.txt"  # in the folder of a run that ended so
ENCODER = "encoder"  # the name of the probed encoder among the features; the others are baselines


@dataclass
class Row:
    """A choice or baseline: values over seeds."""

    name: str
    about: str
    steps: int = 0
    teacher_steps: int = 0
    top1: dict[str, list[float]] = field(default_factory=dict)  # "head at share" -> a value a seed
    gauges: dict[str, list[float]] = field(default_factory=dict)  # name -> a value a seed
    diverged: int = 0  # seeds whose run did not come to its end


def collect(folder: Path, abouts: Mapping[str, str], steps: Mapping[str, Mapping[str, int]]) -> list[Row]:
    """Rows of all finished runs under `folder`/<choice>/seed-<n>; baselines come last."""
    rows: list[Row] = []
    baselines: dict[str, Row] = {}
    for name, about in abouts.items():
        found_steps = steps.get(name, {})
        row = Row(name, about, found_steps.get("run", 0), found_steps.get("teacher", 0))
        for place in sorted((folder / name).glob("seed-*")):
            row.diverged += (place / DIVERGED).is_file()
            if not (place / "probe" / "results.json").is_file():
                continue
            for results in sorted(place.glob("probe*/results.json")):
                subject = results.parent.name.removeprefix("probe").removeprefix("-")
                for found in read_results(results).rows:
                    whose = row
                    if found["features"] != ENCODER:
                        whose = baselines.setdefault(found["features"], Row(found["features"], "baseline"))
                    _add(whose.top1, found, subject)
            for gauge, value in json.loads((place / "gauges.json").read_text()).items():
                row.gauges.setdefault(gauge, []).append(value)
        if row.top1 or row.diverged:
            rows.append(row)
    return rows + list(baselines.values())


def columns(rows: Sequence[Row]) -> list[str]:
    """The probes that any row has, in the order met."""
    return list(dict.fromkeys(column for row in rows for column in row.top1))


def render(rows: Sequence[Row], budget: str) -> str:
    """Markdown: top-1 at all labels with the gauges, at few labels, and on other sets; what each choice is."""
    heads = columns(rows)
    few = [column for column in heads if FEW in column and TRANSFER not in column]
    other = [column for column in heads if TRANSFER in column and FEW not in column]
    lines = [
        f"Equal compute: {budget} each. Top-1 in per cent, mean over seeds that came to an end (lowest to highest).",
        "",
        *_table(rows, [column for column in heads if FEW not in column and TRANSFER not in column], gauges=True),
    ]
    if few:
        lines += ["", "With a share of the labels:", "", *_table(rows, few)]
    if other:
        lines += ["", "On other videos, all labels:", "", *_table(rows, other)]
    lines += ["", *(f"- **{row.name}**: {row.about}" for row in rows if row.about != "baseline")]
    return "\n".join(lines) + "\n"


def as_plain(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows as plain data for results.json."""
    return [asdict(row) for row in rows]


def draw_figure(rows: Sequence[Row], path: Path) -> None:
    """One panel a head, on the reported set: a dot a seed, a bar their mean; baselines in grey."""
    heads = [column for column in columns(rows) if TRANSFER not in column]
    if not heads:  # all diverged
        return
    figure = Figure(figsize=(1.5 + 1.5 * len(heads), 0.8 + 0.32 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(heads), sharey=True, squeeze=False)[0]
    heights = list(range(len(rows)))[::-1]
    for panel, column in zip(panels, heads, strict=True):
        for row, height in zip(rows, heights, strict=True):
            values = [100 * value for value in row.top1.get(column, [])]
            if values:
                colour = "0.65" if row.about == "baseline" else "tab:blue"
                panel.barh(height, sum(values) / len(values), color=colour, alpha=0.45, height=0.7)
                panel.plot(values, [height] * len(values), "o", color=colour, markersize=4)
        panel.set_title(column.replace(", ", "\n"), fontsize=9)
        panel.set_xlim(left=0)
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(heights, [row.name for row in rows])
    figure.supxlabel("top-1, %", fontsize=9)
    figure.savefig(path, dpi=130)


def _table(rows: Sequence[Row], heads: Sequence[str], gauges: bool = False) -> list[str]:
    shown = list(dict.fromkeys(gauge for row in rows for gauge in row.gauges)) if gauges else []
    lines = [["choice", "steps", *heads, *shown]]
    for row in rows:
        steps = f"{row.teacher_steps} + {row.steps}" if row.teacher_steps else str(row.steps or "-")
        if row.diverged:
            steps += f", {row.diverged} diverged"
        cells = [_spread(row.top1.get(column, []), 100) for column in heads]
        cells += [_spread(row.gauges.get(gauge, []), 1) for gauge in shown]
        lines.append([row.name, steps, *cells])
    return to_markdown(lines)


def _add(top1: dict[str, list[float]], found: Mapping[str, Any], subject: str) -> None:
    """Add one head's scores of one seed: of all labels, and of each share the mean over the subsets drawn."""
    head = f"{subject}{TRANSFER}{found['head']}" if subject else found["head"]
    top1.setdefault(head, []).append(found["top1"])
    for point in found["shares"]:
        if point["share"] < 1:
            top1.setdefault(f"{head}, {point['share']:.0%}{FEW}", []).append(point["mean"])


def _spread(values: Sequence[float], factor: float) -> str:
    if not values:
        return "-"
    mean, low, high = sum(values) / len(values), min(values), max(values)
    text = f"{factor * mean:.1f}"
    return text if len(values) == 1 else f"{text} ({factor * low:.1f} to {factor * high:.1f})"
