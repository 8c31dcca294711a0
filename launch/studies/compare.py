"""Compare probe results: scores with intervals, and which differences are significant."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from probes.results import Document, Predictions, read_predictions
from probes.significance import Difference, compare_errors, compare_hits, correct_holm
from probes.tables import align_columns

LEVEL = 0.05


@dataclass(frozen=True)
class Entry:
    """The result of one head on one feature type of one probe."""

    name: str  # of the probe; empty if there is only one
    row: dict[str, Any]  # its row in results.json
    predictions: Predictions

    @property
    def title(self) -> str:
        """A name that distinguishes it from the other entries."""
        return ", ".join(part for part in (self.name, self.row["features"]) if part)

    @property
    def head(self) -> str:
        """The name of the head."""
        return str(self.row["head"])


@dataclass(frozen=True)
class Pair:
    """Two entries with the same head, compared on the same samples."""

    first: Entry
    second: Entry
    samples: int
    difference: Difference


def choose_entries(documents: Sequence[Document], features: list[str] | None, heads: list[str] | None) -> list[Entry]:
    """The selected rows, in the order of the files; ValueError if no row matches or the tasks differ."""
    if len({document.path.resolve() for document in documents}) < len(documents):
        raise ValueError("a results.json was given twice; give each once")
    tasks = sorted({document.task for document in documents})
    if len(tasks) > 1:
        raise ValueError(f"only results of the same task can be compared, got {' and '.join(tasks)}")
    wanted = features or (["encoder"] if len(documents) > 1 else None)
    names = _name_apart([str(document.path.parent) for document in documents]) if len(documents) > 1 else [""]
    entries = []
    for name, document in zip(names, documents, strict=True):
        predictions = read_predictions(document)
        for row in document.rows:
            if (wanted is None or row["features"] in wanted) and (not heads or row["head"] in heads):
                entries.append(Entry(name, row, predictions[row["features"], row["head"]]))
    if not entries:
        rows = [(row["features"], row["head"]) for document in documents for row in document.rows]
        raise ValueError(
            f"no result has these features and heads; the features are "
            f"{', '.join(dict.fromkeys(name for name, _ in rows))} and the heads are "
            f"{', '.join(dict.fromkeys(name for _, name in rows))}"
        )
    return entries


def compare(entries: Sequence[Entry], common: bool = False) -> tuple[list[Pair], list[str]]:
    """Every pair with the same head, and the reasons why some pairs could not be compared."""
    pairs, refused = [], []
    ordered = sorted(entries, key=lambda entry: entry.head)
    for first, second in combinations(ordered, 2):
        if first.head != second.head:
            continue
        found = [{key: index for index, key in enumerate(entry.predictions.keys)} for entry in (first, second)]
        shared = [key for key in first.predictions.keys if key in found[1]]
        unshared = [len(indices) - len(shared) for indices in found]
        title = f"{first.title} and {second.title} ({first.head})"
        if not shared or (any(unshared) and not common):
            advice = "; --common compares them on the shared samples" if shared else ""
            refused.append(
                f"{title} were not evaluated on the same samples: {unshared[0]} are only in the first and "
                f"{unshared[1]} only in the second, {len(shared)} in both{advice}"
            )
            continue
        chosen = [np.array([indices[key] for key in shared]) for indices in found]
        truths = [np.array(entry.predictions.labels)[at] for entry, at in zip((first, second), chosen, strict=True)]
        if different := int((truths[0] != truths[1]).sum()):
            refused.append(f"{title} disagree on the label of {different} of {len(shared)} samples")
            continue
        predictions = [
            np.array(entry.predictions.predicted)[at] for entry, at in zip((first, second), chosen, strict=True)
        ]
        if first.predictions.ranks:
            difference = compare_hits(*(predicted == truths[0] for predicted in predictions))
        else:
            difference = compare_errors(
                *(predicted.astype(float) - truths[0].astype(float) for predicted in predictions)
            )
        pairs.append(Pair(first, second, len(shared), difference))
    return pairs, refused


def lay_out_scores(entries: Sequence[Entry]) -> str:
    """The table of scores with their 95 % intervals."""
    rows = [["probe", "features", "head", "samples", "missing"]]
    if "top1" in entries[0].row:
        rows[0] += ["top-1 (Wilson)", "top-5 (Wilson)", "mean per class (bootstrap)"]
    else:
        rows[0] += ["mean absolute error (bootstrap)", "R2 (bootstrap)"]
    for entry in entries:
        row = entry.row
        cells = [entry.name or "-", row["features"], row["head"], f"{row['samples']}", f"{row['missing']}"]
        if "top1" in row:
            cells += [_percent(row[name], row["wilson"][name]) for name in ("top1", "top5")]
            cells.append(_percent(row["mean_class"], row["bootstrap"]["mean_class"]))
        else:
            for name in ("mae", "r2"):
                low, high = row["bootstrap"][name]
                cells.append(f"{row[name]:.4g} ({low:.4g} to {high:.4g})")
        rows.append(cells)
    return align_columns(rows, left=range(3))


def lay_out_pairs(pairs: Sequence[Pair]) -> str:
    """The differences, second minus first, with their significance after Holm's correction."""
    corrected = correct_holm([pair.difference.p for pair in pairs])
    is_share = bool(pairs[0].first.predictions.ranks)
    unit = "top-1, points" if is_share else "mean absolute error"
    rows = [["head", "second", "first", "samples", f"second - first, {unit}", "p", "p (Holm)", ""]]
    for pair, p in zip(pairs, corrected, strict=True):
        size = 100 if is_share else 1
        value, (low, high) = pair.difference.value, pair.difference.interval
        shown = (
            f"{size * value:+.1f} ({size * low:+.1f} to {size * high:+.1f})"
            if is_share
            else f"{value:+.3g} ({low:+.3g} to {high:+.3g})"
        )
        verdict = "significant" if p < LEVEL else "not significant"
        rows.append(
            [
                pair.first.head,
                pair.second.title,
                pair.first.title,
                f"{pair.samples}",
                shown,
                _show_p(pair.difference.p),
                _show_p(p),
                verdict,
            ]
        )
    note = f"Significant: p below {LEVEL} after Holm's correction for {len(pairs)} comparisons."
    return f"{align_columns(rows, left=range(3))}\n{note}"


def _percent(value: float, interval: Sequence[float]) -> str:
    return f"{100 * value:.1f} % ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"


def _show_p(value: float) -> str:
    return f"{value:.4f}" if value >= 1e-4 else f"{value:.0e}"


def _name_apart(folders: Sequence[str]) -> list[str]:
    """The shortest path suffixes that distinguish the folders."""
    parts = [folder.replace("\\", "/").rstrip("/").split("/") for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return names
