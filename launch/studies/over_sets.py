"""Compare objectives on several data sets: what a recipe gains over a random encoder, and where it gains least.

A recipe is as good as its worst gain over data sets and heads. Leaving one set out shows whether a choice made on the
others holds on a set that had no part in it. The random encoder is that of the first choice that finished: a choice
that changes the encoder is compared with an encoder of another shape.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from launch.studies.objective_table import TRANSFER, Row, columns
from probes.tables import to_markdown

RANDOM = "random encoder"  # the feature type of the random encoder
# Student's t: half the width of a 95 % interval of a mean, in standard errors, for 2, 3, 4, ... seeds
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


@dataclass(frozen=True)
class Gain:
    """Top-1 of a choice minus that of a random encoder with the same seed, on one set under one head."""

    values: tuple[float, ...]  # one per seed, in points

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return sum(self.values) / len(self.values)

    @property
    def half_width(self) -> float:
        """Half of the 95 % interval of the mean over seeds; infinite for a single seed."""
        seeds = len(self.values)
        if seeds < 2:
            return math.inf
        variance = sum((value - self.mean) ** 2 for value in self.values) / (seeds - 1)
        return STUDENT[min(seeds - 2, len(STUDENT) - 1)] * math.sqrt(variance / seeds)

    @property
    def is_clear(self) -> bool:
        """Whether the interval lies above 0."""
        return self.mean - self.half_width > 0

    def __str__(self) -> str:
        if len(self.values) < 2:
            return f"{self.mean:+.1f}"
        return f"{self.mean:+.1f} ± {self.half_width:.1f}" + ("" if self.is_clear else " (unclear)")


Gains = dict[str, dict[str, dict[str, Gain]]]  # choice -> set -> head


def find_gains(tables: Mapping[str, Sequence[Row]]) -> Gains:
    """The gains of all choices. A choice that diverged with any seed on a set has no gains there.

    tables: set -> the rows of its comparison, with the random encoder's among them.
    """
    gains: Gains = {}
    for name, rows in tables.items():
        floor = next((row.top1 for row in rows if row.name == RANDOM), {})
        for row in rows:
            if row.about == "baseline":
                continue
            found = gains.setdefault(row.name, {}).setdefault(name, {})
            for head, values in row.top1.items():
                base = floor.get(head, [])
                if TRANSFER not in head and not row.diverged and len(base) == len(values):
                    found[head] = Gain(tuple(100 * (a - b) for a, b in zip(values, base, strict=True)))
    return gains


def worst(found: Mapping[str, Mapping[str, Gain]], sets: Sequence[str]) -> tuple[float, str]:
    """The smallest mean gain over sets and heads, and where it is; minus infinity where a run diverged."""
    if missing := [name for name in sets if not found.get(name)]:
        return -math.inf, f"{missing[0]}: no result"
    return min((gain.mean, f"{name}, {head}") for name in sets for head, gain in found[name].items())


def leave_one_out(gains: Gains, sets: Sequence[str]) -> list[tuple[str, str, float, str]]:
    """For each set: the choice with the best worst gain on the other sets, and its own worst gain on this one."""
    lines = []
    for left_out in sets:
        others = [name for name in sets if name != left_out]
        chosen = max(gains, key=lambda choice: worst(gains[choice], others)[0])
        lines.append((left_out, chosen, *worst(gains[chosen], [left_out])))
    return lines


def render_sets(tables: Mapping[str, Sequence[Row]]) -> str:
    """Markdown: the worst gain of each choice, the gains on every set, leave-one-out, and all scores."""
    sets, gains = list(tables), find_gains(tables)
    lines = [
        "Gains over a random encoder with the same seed: top-1 in points, mean over seeds ± the 95 % interval.",
        "",
        *to_markdown([["choice", "worst gain", "where"], *_worst_lines(gains, sets)]),
    ]
    for name in sets:
        heads = list(dict.fromkeys(head for found in gains.values() for head in found.get(name, {})))
        body = [[choice, *(str(found[name].get(head, "-")) for head in heads)] for choice, found in gains.items()]
        lines += ["", f"On {name}:", "", *to_markdown([["choice", *heads], *body])]
    if len(sets) > 1 and len(gains) > 1:
        rows = [[left, chosen, f"{value:+.1f}", where] for left, chosen, value, where in leave_one_out(gains, sets)]
        head = ["left out", "chosen on the others", "its worst gain on the set left out", "where"]
        lines += ["", "One set left out:", "", *to_markdown([head, *rows])]
    lines += ["", "All scores, in per cent:"]
    for name, scored in tables.items():
        heads = [column for column in columns(scored) if TRANSFER not in column]
        body = [[row.name, *(_mean(row.top1.get(head, [])) for head in heads)] for row in scored]
        lines += ["", f"{name}", "", *to_markdown([["features", *heads], *body])]
    return "\n".join(lines) + "\n"


def write_sets(folder: Path, tables: Mapping[str, Sequence[Row]]) -> None:
    """Write sets.md and sets.json."""
    (folder / "sets.md").write_text(render_sets(tables))
    plain = {name: [asdict(row) for row in rows] for name, rows in tables.items()}
    (folder / "sets.json").write_text(json.dumps(plain, indent=1) + "\n")


def _worst_lines(gains: Gains, sets: Sequence[str]) -> list[list[str]]:
    found = {choice: worst(by_set, sets) for choice, by_set in gains.items()}
    ordered = sorted(found, key=lambda choice: -found[choice][0])
    return [[choice, f"{found[choice][0]:+.1f}", found[choice][1]] for choice in ordered]


def _mean(values: Sequence[float]) -> str:
    return f"{100 * sum(values) / len(values):.1f}" if values else "-"
