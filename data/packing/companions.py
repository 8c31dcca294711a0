"""Arrays that belong to a video and go into its sample: actions, states, values.

They are found beside VIDEO.mp4, in one or several of

    VIDEO.json            {"actions": [[...], ...], "states": [[...], ...], "values": {"mass": 1.5}}
    VIDEO.npz             arrays `actions` [F-1, A] and `states` [F, S], read without pickle; numbers become values
    VIDEO.actions.csv     a header, then a row of numbers for every pair of consecutive frames
    VIDEO.states.csv      a header, then a row of numbers for every frame

or in the LeRobot data set that the video lies in (`lerobot.py`). F frames of the video.
"""

import csv
import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from numpy.lib import format as npy

from data.containers import DecodeError
from data.packing.lerobot import read_episode

MISSING = {"actions": 1, "states": 0}  # frames without a row
FIELDS = (*MISSING, "values")


def read_companions(path: Path, frames: int) -> dict[str, Any]:
    """The fields of all companions of a video with this many frames, as plain lists; {} if there are none.

    Raises DecodeError if one is malformed, has another number of rows, or if two give the same field.
    """
    found: dict[str, Any] = {}
    for name, fields in _candidates(path):
        for field, content in fields.items():
            if field in found:
                raise DecodeError("malformed companion", f"{name}: {field} is also given by another file")
            if field in MISSING and (not isinstance(content, list) or len(content) != frames - MISSING[field]):
                rows = len(content) if isinstance(content, list) else "no"
                raise DecodeError(
                    "malformed companion", f"{name}: {field} needs {frames - MISSING[field]} rows, found {rows}"
                )
            found[field] = content
    return found


def _candidates(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Name and fields of every companion of a video."""
    if (companion := path.with_suffix(".json")).is_file():
        yield companion.name, _read_json(companion)
    if (companion := path.with_suffix(".npz")).is_file():
        yield companion.name, _read_npz(companion)
    for field in MISSING:
        if (companion := path.with_suffix(f".{field}.csv")).is_file():
            yield companion.name, {field: _read_csv(companion)}
    yield from read_episode(path)


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DecodeError("malformed companion", f"{path.name}: {error}") from error
    return {name: content[name] for name in FIELDS if name in content} if isinstance(content, dict) else {}


def _read_npz(path: Path) -> Mapping[str, Any]:
    fields: dict[str, Any] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                name = member.removesuffix(".npy")
                with archive.open(member) as file:
                    array = npy.read_array(file, allow_pickle=False)
                if name in MISSING:
                    fields[name] = array.astype(float).tolist()
                elif array.ndim == 0:
                    fields.setdefault("values", {})[name] = float(array)
    except Exception as error:  # zipfile and numpy raise many types for damaged files
        raise DecodeError("malformed companion", f"{path.name}: {error}") from error
    return fields


def _read_csv(path: Path) -> list[list[float]]:
    try:
        rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8-sig"))))
        header, numbers = rows[0], [[float(cell) for cell in row] for row in rows[1:] if row]
    except (ValueError, IndexError, csv.Error) as error:
        raise DecodeError(
            "malformed companion", f"{path.name}: a header and rows of numbers expected, {error}"
        ) from None
    uneven = [number for number, row in enumerate(numbers, 2) if len(row) != len(header)]
    if uneven:
        raise DecodeError("malformed companion", f"{path.name}, line {uneven[0]}: {len(header)} numbers expected")
    return numbers
