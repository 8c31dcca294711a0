"""Groups of possible and impossible videos, read from folders of several shapes.

twins     OUTPUT of `generate twins`: videos/{possible,impossible}/INDEX.mp4, four clips a group
intphys   PROPERTY/SCENE/MOVIE/scene/*.png (or *.jpg) and MOVIE/status.json with header.is_possible
folders   PROPERTY/{possible,impossible}/NAME (or plausible, implausible): GRASP; paired by name, else by order
table     PROPERTY.csv with the columns video, group, possible (1 or 0), paths relative to the table: InfLevel
"""

import csv
import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data.loading.augment import crop_resize, square_boxes
from launch.exchange.features import open_video, show_windows

POSSIBLE, IMPOSSIBLE = ("possible", "plausible"), ("impossible", "implausible")
NOTE = ".generated.json"  # written by `generate` beside its videos
PICTURES, VIDEOS = (".png", ".jpg", ".jpeg"), (".mp4", ".avi", ".mov", ".webm", ".mkv")


@dataclass(frozen=True)
class Group:
    """Videos of one scene; possible[i] and impossible[i] are a pair."""

    name: str
    property: str  # what an impossible video violates
    possible: tuple[Path, ...]
    impossible: tuple[Path, ...]

    def __post_init__(self) -> None:
        if not self.possible or len(self.possible) != len(self.impossible):
            raise ValueError(
                f"{self.name} needs as many possible as impossible videos, got {len(self.possible)} and "
                f"{len(self.impossible)}"
            )


def read_groups(folder: Path, layout: str = "auto") -> list[Group]:
    """The groups in a folder, in a fixed order; ValueError if it has none of the shapes."""
    if not folder.is_dir():
        raise FileNotFoundError(f"pairs: there is no folder {folder}")
    if layout != "auto" and layout not in LAYOUTS:
        raise ValueError(f"layout must be auto, {', '.join(LAYOUTS)}, got {layout}")
    for read in LAYOUTS.values() if layout == "auto" else [LAYOUTS[layout]]:
        if groups := read(folder):
            return groups
    raise ValueError(
        f"pairs: {folder} holds no groups of possible and impossible videos in the layout {layout}; "
        "docs/energy.md shows the layouts"
    )


def read_forks(folder: Path) -> list[Path]:
    """Videos of `generate forks`, the two futures of a past next to each other; ValueError if it holds none."""
    videos = folder / "videos" if (folder / "videos").is_dir() else folder
    found = {int(path.stem): path for path in videos.glob("*/[0-9]*.mp4")}
    chosen = [found[index] for index in sorted(found) if index ^ 1 in found]
    if _kind_of(videos) != "forks" or not chosen:
        raise ValueError(f"{folder} is no output of `vjepa generate forks`")
    return chosen


def _read_twins(folder: Path) -> list[Group]:
    videos = folder / "videos" if (folder / "videos").is_dir() else folder
    if _kind_of(videos) != "twins":
        return []
    events = json.loads((videos / NOTE).read_text())["config"]["events"]
    quadruplets: dict[int, dict[int, Path]] = defaultdict(dict)
    for path in videos.glob("*/[0-9]*.mp4"):
        quadruplet, member = divmod(int(path.stem), 4)
        quadruplets[quadruplet][member] = path
    return [
        Group(f"quadruplet {number}", events[number % len(events)], (clips[0], clips[1]), (clips[2], clips[3]))
        for number, clips in sorted(quadruplets.items())
        if len(clips) == 4
    ]


def _read_intphys(folder: Path) -> list[Group]:
    scenes: dict[Path, dict[bool, list[Path]]] = defaultdict(lambda: {True: [], False: []})
    for status in sorted(folder.glob("**/status.json")):
        header = json.loads(status.read_text()).get("header", {})
        if "is_possible" not in header:
            raise ValueError(f"{status} lacks header.is_possible; the test set comes without it, use the dev set")
        scenes[status.parent.parent][bool(header["is_possible"])].append(status.parent / "scene")
    return [
        Group(
            str(scene.relative_to(folder)), scene.parent.name, tuple(movies[True]), _match(movies[True], movies[False])
        )
        for scene, movies in sorted(scenes.items())
    ]


def _read_folders(folder: Path) -> list[Group]:
    groups = []
    for inner in sorted(path for path in folder.rglob("*") if path.is_dir() and path.name in POSSIBLE):
        other = inner.with_name(IMPOSSIBLE[POSSIBLE.index(inner.name)])
        first, second = _list_videos(inner), _list_videos(other)
        kind = str(inner.parent.relative_to(folder)) if inner.parent != folder else folder.name
        if len(first) != len(second):
            raise ValueError(f"{inner} and {other} must hold equally many videos, got {len(first)} and {len(second)}")
        names = {path.stem: path for path in second}
        if set(names) == {path.stem for path in first}:
            second = [names[path.stem] for path in first]
        groups += [Group(f"{kind}/{a.stem}", kind, (a,), (b,)) for a, b in zip(first, second, strict=True)]
    return groups


def _read_tables(folder: Path) -> list[Group]:
    groups = []
    for table in sorted(folder.glob("*.csv")):
        members: dict[str, dict[bool, list[Path]]] = defaultdict(lambda: {True: [], False: []})
        with table.open(newline="") as file:
            for number, row in enumerate(csv.DictReader(file), 2):
                if not {"video", "group", "possible"} <= row.keys() or row["possible"] not in ("0", "1"):
                    raise ValueError(f"{table}, line {number}: needs video, group and possible (0 or 1), got {row}")
                members[row["group"]][row["possible"] == "1"].append(folder / row["video"])
        groups += [
            Group(f"{table.stem}/{name}", table.stem, tuple(found[True]), tuple(found[False]))
            for name, found in members.items()
        ]
    return groups


LAYOUTS: dict[str, Callable[[Path], list[Group]]] = {
    "twins": _read_twins, "intphys": _read_intphys, "folders": _read_folders, "table": _read_tables,
}  # fmt: skip


def read_frames(path: Path, crop: int, step: int = 1) -> Tensor:
    """Every `step`-th frame of a video or of a folder of pictures, centre-cropped: uint8 [T, crop, crop, 3]."""
    if path.is_dir():
        pictures = sorted(entry for entry in path.iterdir() if entry.suffix.lower() in PICTURES)[::step]
        if not pictures:
            raise ValueError(f"{path} holds no pictures ({', '.join(PICTURES)})")
        return torch.cat([_read_picture(entry, crop) for entry in pictures])
    video = open_video(path)
    indices = np.arange(0, video.timing.frames, step)
    return next(show_windows(video, indices[None], crop))


def _read_picture(path: Path, crop: int) -> Tensor:
    with Image.open(path) as picture:
        pixels = np.array(picture.convert("RGB"))[None]
    return crop_resize(pixels, square_boxes(pixels.shape[1], pixels.shape[2], 1)[0], crop)


def _kind_of(videos: Path) -> str:
    """The kind of generated data in a folder of videos; "" if it is not generated."""
    note = videos / NOTE
    return str(json.loads(note.read_text())["kind"]) if note.is_file() else ""


def _list_videos(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    found: Iterable[Path] = (path for path in folder.iterdir() if path.is_dir() or path.suffix.lower() in VIDEOS)
    return sorted(found)


def _match(first: list[Path], second: list[Path]) -> tuple[Path, ...]:
    """The order of `second` in which each movie shares as many first frames as possible with its partner."""
    left, matched = list(second), []
    for movie in first:
        if not left:
            break
        best = max(left, key=lambda other: _shared_frames(movie, other))
        left.remove(best)
        matched.append(best)
    return tuple(matched + left)


def _shared_frames(one: Path, two: Path) -> int:
    """How many first pictures of two folders are equal."""
    names = zip(sorted(one.iterdir()), sorted(two.iterdir()), strict=False)
    count = 0
    for a, b in names:
        if a.read_bytes() != b.read_bytes():
            break
        count += 1
    return count
