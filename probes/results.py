"""results.json and predictions.csv: the results of a probe, also read by `vjepa compare`.

results.json has the scores, predictions.csv a row for each sample, head and kind of features. docs/probing.md documents
the schema.
"""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from data.files import replacing, write_json
from probes.evaluate import Result

FORMAT = "vjepa-probe-2"
NAME, PREDICTIONS = "results.json", "predictions.csv"
JSON_NAMES = {str: "string", list: "array", dict: "object"}
COLUMNS = ("features", "head", "key", "label", "predicted", "probability", "rank")


@dataclass(frozen=True)
class Predictions:
    """One head's predictions for the samples of the test set, in the file's order."""

    keys: list[str]
    labels: list[str]  # class names, or values
    predicted: list[str]
    probabilities: list[float] = field(default_factory=list)  # of the true class; empty for regression
    ranks: list[int] = field(default_factory=list)  # of the true class, 0 if correct; empty for regression


@dataclass(frozen=True)
class Document:
    """A results.json."""

    path: Path
    task: str  # classification or regression
    classes: list[str]
    missing: dict[str, list[str]]  # unreadable samples of the test set, by reason
    rows: list[dict[str, Any]]  # one per head and kind of features, see docs/probing.md
    config: dict[str, Any]


def write_results(
    folder: Path,
    results: Sequence[Result],
    classes: Sequence[str],
    config: Mapping[str, Any],
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """Write results.json and predictions.csv; `facts`: further entries of results.json. Returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_predictions(folder / PREDICTIONS, results, classes)
    document = {
        "format": FORMAT,
        "task": "classification" if classes else "regression",
        **(facts or {}),
        "classes": list(classes),
        "missing": dict(results[0].answers.missing) if results else {},
        "results": [result.as_dict() for result in results],
        "config": dict(config),
    }
    write_json(folder / NAME, document)
    return folder / NAME


def read_results(path: str | Path) -> Document:
    """Read a probe's results.json, given the file or its folder.

    Raises FileNotFoundError if there is none, ValueError if the file is something else or has another version.
    """
    path = Path(path)
    path = path / NAME if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; `vjepa probe` writes results.json")
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); probe again") from error
    kind = found.get("format") if isinstance(found, dict) else None
    if kind != FORMAT:
        raise ValueError(
            f"{path} must be the results.json of a probe, with format {FORMAT!r}, got {kind!r}; probe again"
        )
    if fault := _find_fault(found):
        raise ValueError(f"{path} is damaged: {fault}; probe again")
    return Document(path, found["task"], found["classes"], found["missing"], found["results"], found["config"])


def _find_fault(found: Mapping[str, Any]) -> str:
    """What is wrong with the content of a results.json; "" if nothing is."""
    for name, kind in (("task", str), ("classes", list), ("missing", dict), ("results", list), ("config", dict)):
        if not isinstance(found.get(name), kind):
            return f"{name} must be a JSON {JSON_NAMES[kind]}, found {type(found.get(name)).__name__}"
    if not all(isinstance(names, list) for names in found["missing"].values()):
        return "missing must list the samples of each reason"
    for number, row in enumerate(found["results"]):
        try:
            _check_row(row)
        except (KeyError, TypeError, ValueError) as error:
            return f"results[{number}] lacks a field, or its type is wrong ({error})"
    return ""


def _check_row(row: Mapping[str, Any]) -> None:
    """KeyError, TypeError or ValueError unless a row of the results has the fields that `compare` reads."""
    if not isinstance(row["features"], str) or not isinstance(row["head"], str) or row["samples"] < 1:
        raise TypeError("features and head must be texts, samples above 0")
    row["missing"] + 0
    names, others = (("top1", "top5"), ("mean_class",)) if "top1" in row else ((), ("mae", "r2"))
    intervals = [row["wilson"][name] for name in names] + [row["bootstrap"][name] for name in others]
    for low, high in intervals:
        float(low + high + sum(row[name] for name in (*names, *others)))


def read_predictions(document: Document) -> dict[tuple[str, str], Predictions]:
    """Read the predictions.csv next to a results.json, by (features, head).

    Raises FileNotFoundError if it is missing, ValueError if it does not match results.json.
    """
    path = document.path.with_name(PREDICTIONS)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; `vjepa probe` writes it beside {document.path.name}")
    try:
        found = _parse_predictions(path)
    except (TypeError, csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error}); probe again") from error
    for row in document.rows:
        one = found.get((row["features"], row["head"]), Predictions([], [], []))
        if len(one.keys) != row["samples"] or len(set(one.keys)) != len(one.keys):
            raise ValueError(
                f"{path} must have each of the {row['samples']} samples of {row['features']}, {row['head']} once, "
                f"got {len(one.keys)} lines; probe again"
            )
    return found


def _parse_predictions(path: Path) -> dict[tuple[str, str], Predictions]:
    found: dict[tuple[str, str], Predictions] = {}
    with path.open(newline="") as file:
        rows = csv.DictReader(file)
        if tuple(rows.fieldnames or ()) != COLUMNS:
            raise ValueError(f"{path} must have the columns {', '.join(COLUMNS)}, got {rows.fieldnames}; probe again")
        for number, row in enumerate(rows, 2):
            one = found.setdefault((row["features"], row["head"]), Predictions([], [], []))
            one.keys.append(row["key"])
            one.labels.append(row["label"])
            one.predicted.append(row["predicted"])
            if row["rank"]:
                try:
                    one.probabilities.append(float(row["probability"]))
                    one.ranks.append(int(row["rank"]))
                except ValueError as error:
                    raise ValueError(f"{path}, line {number}: {error}; probe again") from error
    return found


def _write_predictions(path: Path, results: Sequence[Result], classes: Sequence[str]) -> None:
    with replacing(path) as part, part.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for result in results:
            answers = result.answers
            lines = _say_classes(answers.said, answers.labels, classes) if classes else _say_values(answers.said)
            truths = [classes[label] for label in answers.labels.tolist()] if classes else answers.labels.tolist()
            for key, truth, line in zip(answers.keys, truths, lines, strict=True):
                writer.writerow([result.features, result.head, key, truth, *line])


def _say_classes(said: Tensor, labels: Tensor, classes: Sequence[str]) -> list[list[Any]]:
    """Predicted class, probability of the true class and its rank, for probabilities [n, C].

    Among equally probable classes the true one ranks last unless it is the prediction, so constant outputs score low.
    """
    truth = said.gather(1, labels[:, None])
    predicted = said.argmax(1)
    ranks = ((said >= truth).sum(1) - 1).where(predicted != labels, 0)
    shown = [f"{value:.6g}" for value in truth[:, 0].tolist()]
    named = [classes[number] for number in predicted.tolist()]
    return [list(line) for line in zip(named, shown, ranks.tolist(), strict=True)]


def _say_values(said: Tensor) -> list[list[Any]]:
    return [[value, "", ""] for value in said[:, 0].tolist()]
