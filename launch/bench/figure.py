"""Plots where the time of a step goes: one bar per step, one colour per part."""

from collections.abc import Mapping
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

NARROW = 0.05  # below this fraction of the longest bar, a part is too narrow for its number

Parts = Mapping[str, float | None]  # milliseconds of each part, None if it does not apply


def draw_parts(bars: Mapping[str, Parts], title: str, path: Path) -> None:
    """Draw a stacked bar in milliseconds for each of `bars`, the first on top, and save it as PNG."""
    figure = Figure(figsize=(9.0, 1.9 + 0.6 * len(bars)), layout="constrained")
    FigureCanvasAgg(figure)
    panel = figure.subplots()
    names = [name for name in next(iter(bars.values())) if any(parts[name] for parts in bars.values())]
    longest = max(sum(parts[name] or 0.0 for name in names) for parts in bars.values())
    colours = [f"C{number}" for number in range(len(names))]
    begun = [0.0] * len(bars)
    for name, colour in zip(names, colours, strict=True):
        lengths = [parts[name] or 0.0 for parts in bars.values()]
        panel.barh(range(len(bars)), lengths, left=begun, color=colour, height=0.6, label=name.replace("_", " "))
        for row, length in enumerate(lengths):
            if length > NARROW * longest:
                middle = begun[row] + length / 2
                panel.text(middle, row, _number(length), ha="center", va="center", fontsize=9, color="white")
        begun = [start + length for start, length in zip(begun, lengths, strict=True)]
    for row, end in enumerate(begun):
        panel.text(end + 0.01 * longest, row, f"{_number(end)} ms", ha="left", va="center", fontsize=9)
    panel.set_yticks(range(len(bars)), list(bars))
    panel.invert_yaxis()
    panel.set_xlim(0, 1.1 * longest)
    panel.set_xlabel("milliseconds per step, synchronising with the device between parts")
    panel.set_title(title, fontsize=10)
    panel.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.2g}"
