"""LeRobot data sets: robot episodes as videos, with actions and states in parquet files.

The layout (codebase_version v2.0 and v2.1, one file an episode and camera):

    meta/info.json                                             templates of the paths below, features, fps
    meta/episodes.jsonl                                        a line an episode: episode_index, tasks, length
    data/chunk-000/episode_000000.parquet                      a row a frame: action, observation.state, ...
    videos/chunk-000/observation.images.top/episode_000000.mp4

Row t holds the state in frame t and the action taken there, so the last action leads out of the episode and is left
out. Version v3.0 joins several episodes in a file and is refused by name.
"""

import importlib
import json
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from data.containers import DecodeError

INFO = Path("meta") / "info.json"
VERSIONS = ("v2.0", "v2.1")
COLUMNS = {"actions": "action", "states": "observation.state"}
_EPISODE = re.compile(r"episode_(\d+)")


def is_lerobot(folder: Path) -> bool:
    """Whether a folder holds a LeRobot data set."""
    return (folder / INFO).is_file() and (folder / "data").is_dir()


def list_episodes(folder: Path) -> list[tuple[Path, str | None]]:
    """The videos of all episodes and cameras, each with its task (None if all have the same).

    Raises ValueError for a version that stores episodes differently, or without videos.
    """
    importlib.import_module("pyarrow.parquet")  # so that a missing package is named before anything is packed
    _read_info(folder)
    videos = sorted((folder / "videos").glob("chunk-*/*/episode_*.mp4"))
    if not videos:
        raise ValueError(f"{folder}: a LeRobot data set without videos; images inside parquet files are not read")
    tasks = _read_tasks(folder)
    several = len(set(tasks.values())) > 1
    return [(video, tasks.get(_episode(video)) if several else None) for video in videos]


def read_episode(video: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Name of the parquet file of an episode's video and its actions and states; nothing for any other video.

    Raises DecodeError if the file is missing or cannot be read.
    """
    folder = video.parents[3] if len(video.parents) > 3 else video.parent
    if _EPISODE.fullmatch(video.stem) is None or not is_lerobot(folder):
        return
    info, number = _read_info(folder), _episode(video)
    table = folder / info["data_path"].format(
        episode_chunk=number // int(info.get("chunks_size", 1000)), episode_index=number
    )
    yield table.name, _read_table(table)


def _read_table(path: Path) -> dict[str, Any]:
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = [name for name in ("frame_index", *COLUMNS.values()) if name in file.schema_arrow.names]
            columns = file.read(names).to_pydict()
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise DecodeError("malformed companion", f"{path.name}: {error}") from error
    order = columns.get("frame_index", [])
    if order != sorted(order):
        raise DecodeError("malformed companion", f"{path.name}: frame_index is not in order")
    fields = {field: _as_rows(columns[name]) for field, name in COLUMNS.items() if name in columns}
    if "actions" in fields:
        fields["actions"] = fields["actions"][:-1]
    return fields


def _as_rows(column: list[Any]) -> list[list[float]]:
    return [[float(cell) for cell in row] if isinstance(row, list) else [float(row)] for row in column]


@lru_cache(maxsize=16)
def _read_info(folder: Path) -> dict[str, Any]:
    path = folder / INFO
    try:
        info = json.loads(path.read_bytes())
        version, template = info["codebase_version"], info["data_path"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: not the description of a LeRobot data set ({error!r})") from error
    if version not in VERSIONS or not isinstance(template, str):
        raise ValueError(
            f"{path}: codebase_version must be {' or '.join(VERSIONS)}, with one file an episode, got {version!r}; "
            "convert the data set to v2.1 first"
        )
    found: dict[str, Any] = info
    return found


def _read_tasks(folder: Path) -> dict[int, str]:
    path = folder / "meta" / "episodes.jsonl"
    if not path.is_file():
        return {}
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        return {int(row["episode_index"]): str(row["tasks"][0]) for row in rows if row.get("tasks")}
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise ValueError(f"{path}: a line an episode with episode_index and tasks expected ({error!r})") from error


def _episode(video: Path) -> int:
    found = _EPISODE.fullmatch(video.stem)
    return int(found[1]) if found else -1
