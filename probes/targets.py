"""Regression targets from a CSV table with the header `key,value` or `path,value`."""

import csv
from collections.abc import Mapping
from pathlib import Path

import torch

from data.packing.sources import Source
from probes.features import Features


def read_targets(path: str | Path) -> dict[str, float]:
    """Target value by sample key. Paths are those of the packed videos, relative to their folder.

    Raises FileNotFoundError, or ValueError naming the faulty line.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no table of targets {path}")
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = list(csv.reader(file))
    header = [name.strip().lower() for name in rows[0]] if rows else []
    if sorted(header) not in (["key", "value"], ["path", "value"]):
        raise ValueError(f"{path}: the header must be key,value or path,value, found {','.join(header) or 'nothing'}")
    by_path = "path" in header
    found: dict[str, float] = {}
    for number, row in enumerate(rows[1:], 2):
        cells = dict(zip(header, row, strict=False))
        try:
            value = float(cells["value"])
        except (KeyError, ValueError) as error:
            raise ValueError(f"{path}, line {number}: the value must be a number, found {row}") from error
        name = cells["path" if by_path else "key"].strip()
        key = Source(name, name).key if by_path else name
        if found.setdefault(key, value) != value:
            raise ValueError(f"{path}, line {number}: {name} has two values, {found[key]:g} and {value:g}")
    return found


def with_targets(features: Features, targets: Mapping[str, float], name: str) -> Features:
    """The features with float32 target values as labels; ValueError if a sample of the set `name` has none."""
    absent = [key for key in features.keys if key not in targets]
    if absent:
        more = f" and {len(absent) - 5} more" if len(absent) > 5 else ""
        raise ValueError(
            f"{len(absent)} of {len(features)} samples of {name} have no value: {', '.join(absent[:5])}{more}; "
            "every sample needs a line in the table of targets"
        )
    values = torch.tensor([targets[key] for key in features.keys], dtype=torch.float32)
    return features.relabel(values)
