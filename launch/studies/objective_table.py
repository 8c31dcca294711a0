"""The results of a comparison of objectives, as one table and one figure.

A row is a choice or a baseline; a column is a head, with all labels or a fraction of them, on the test set or on
another data set (transfer). Values are top-1: the mean over seeds, and the lowest and highest seed.
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

FEW, TRANSFER = " of labels", ": "  # markers in the names of few-label and of transfer columns
DIVERGED = "diverged.txt"  # present in the folder of a run that diverged
ENCODER = "encoder"  # the feature type of the probed encoder; all others are baselines


@dataclass
class Row:
    """The values of a choice or baseline over seeds."""

    name: str
    about: str
    steps: int = 0
    teacher_steps: int = 0
    top1: dict[str, list[float]] = field(default_factory=dict)  # column -> one value per seed
    gauges: dict[str, list[float]] = field(default_factory=dict)  # name -> one value per seed
    diverged: int = 0  # number of seeds whose run diverged


def collect(folder: Path, abouts: Mapping[str, str], steps: Mapping[str, Mapping[str, int]]) -> list[Row]:
    """Rows of all finished runs under `folder`/<choice>/seed-<n>; baselines come last."""
    rows: list[Row] = []
    baselines: dict[str, Row] = {}
    for name, about in abouts.items():
        found_steps = steps.get(name, {})
        row = Row(name, about, found_steps.get("run", 0), found_steps.get("teacher", 0))
        for run_folder in sorted((folder / name).glob("seed-*")):
            row.diverged += (run_folder / DIVERGED).is_file()
            if not (run_folder / "probe" / "results.json").is_file():
                continue
            for results in sorted(run_folder.glob("probe*/results.json")):
                data_set = results.parent.name.removeprefix("probe").removeprefix("-")
                for found in read_results(results).rows:
                    owner = row
                    if found["features"] != ENCODER:
                        owner = baselines.setdefault(found["features"], Row(found["features"], "baseline"))
                    _add(owner.top1, found, data_set)
            for gauge, value in json.loads((run_folder / "gauges.json").read_text()).items():
                row.gauges.setdefault(gauge, []).append(value)
        if row.top1 or row.diverged:
            rows.append(row)
    return rows + list(baselines.values())


def columns(rows: Sequence[Row]) -> list[str]:
    """The columns that any row has, in order of first appearance."""
    return list(dict.fromkeys(column for row in rows for column in row.top1))


def render(rows: Sequence[Row], budget: str) -> str:
    """Markdown: top-1 with all labels and the gauges, with few labels, on other data sets; and what each choice is."""
    heads = columns(rows)
    few = [column for column in heads if FEW in column and TRANSFER not in column]
    other = [column for column in heads if TRANSFER in column and FEW not in column]
    lines = [
        f"Equal compute: {budget} each. Top-1 in per cent, mean over seeds that finished (lowest to highest).",
        "",
        *_table(rows, [column for column in heads if FEW not in column and TRANSFER not in column], gauges=True),
    ]
    if few:
        lines += ["", "With a fraction of the labels:", "", *_table(rows, few)]
    if other:
        lines += ["", "On other videos, all labels:", "", *_table(rows, other)]
    lines += ["", *(f"- **{row.name}**: {row.about}" for row in rows if row.about != "baseline")]
    return "\n".join(lines) + "\n"


def as_plain(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows as plain data for results.json."""
    return [asdict(row) for row in rows]


def draw_figure(rows: Sequence[Row], path: Path) -> None:
    """One panel per head, on the test set: dots are seeds, bars their mean; baselines in grey."""
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


def _add(top1: dict[str, list[float]], found: Mapping[str, Any], data_set: str) -> None:
    """Add one head's scores for one seed: with all labels, and for each fraction the mean over the drawn subsets."""
    head = f"{data_set}{TRANSFER}{found['head']}" if data_set else found["head"]
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
