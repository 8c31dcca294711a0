"""Which videos to pack: a folder, a glob pattern, a csv or tsv, a list of paths, or one video.

In a folder (or below the fixed part of a glob pattern) the first subfolder is the label. A csv or tsv has a header
(`path,label[,start,end]`) or the common headerless lines `path label`; a list has one path per line. Paths in a file
are relative to that file. Labels may be names or integers, but not both. In a LeRobot data set the task is the label.
"""

import csv
import glob
import hashlib
import logging
import math
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from data.containers import DecodeError
from data.loading.shards import PICTURES, VIDEOS
from data.packing.lerobot import is_lerobot, list_episodes
from data.text import printable

logger = logging.getLogger(__name__)

EXTENSIONS = frozenset((*VIDEOS, *PICTURES))
LISTS = (".csv", ".tsv", ".txt", ".list")
MAX_LABEL_DIGITS = 6  # longer labels of digits are names, such as 0001


@dataclass(frozen=True)
class Source:
    """One video to pack, or its part [start, end) in seconds."""

    path: str  # path to open
    name: str  # path relative to SOURCE, as shown in sidecars and reports
    label: str | None = None
    start: float = 0.0  # seconds
    end: float = 0.0  # seconds; 0: to the end

    @property
    def key(self) -> str:
        """Key of the sample in its shard: readable characters of the name, then a hash that makes it unique."""
        identity = self.name if not (self.start or self.end) else f"{self.name}\t{self.start!r}\t{self.end!r}"
        readable = re.sub(r"[^A-Za-z0-9_-]+", "_", Path(self.name).stem).strip("_")[:60]
        return f"{readable or 'video'}-{hashlib.sha256(identity.encode(errors='surrogateescape')).hexdigest()[:12]}"


@dataclass(frozen=True)
class Listing:
    """All videos of SOURCE, without duplicates, and the class names."""

    sources: tuple[Source, ...]
    classes: list[str]  # name of label i
    ignored: int = 0  # number of files without a video's extension
    repeated: tuple[str, ...] = ()  # names listed more than once

    def label(self, source: Source) -> int | None:
        """The label of a source as an integer."""
        return None if source.label is None else self._numbers[source.label]

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.classes)}

    def digest(self) -> str:
        """A hash that changes when a name, label or part changes."""
        lines = (f"{s.name}\t{s.label}\t{s.start!r}\t{s.end!r}\n" for s in self.sources)
        state = hashlib.sha256()
        for line in lines:
            state.update(line.encode(errors="surrogateescape"))
        return state.hexdigest()[:16]


def read_source(path: Path) -> bytes:
    """The content of a regular file; DecodeError for anything else: reading a pipe or a device may never end."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # which a pipe without a writer does not hold up
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise DecodeError("cannot be read", "it is not a regular file")
            return file.read()
    except OSError as error:
        raise DecodeError("cannot be read", error.strerror or str(error)) from error
    except ValueError as error:
        if isinstance(error, DecodeError):
            raise
        raise DecodeError("cannot be read", f"{error} in its name") from error


def list_sources(source: str) -> Listing:
    """List the videos of SOURCE; a ValueError or FileNotFoundError says what is wrong with it."""
    path, ignored = Path(source), 0
    if is_lerobot(path):
        sources = [Source(str(video), video.relative_to(path).as_posix(), task) for video, task in list_episodes(path)]
    elif path.is_dir():
        found = sorted(_walk(path))
        sources = [_from_file(file, path) for file in found if _is_video(file)]
        ignored = len(found) - len(sources)
    elif path.is_file() and path.suffix.lower() in LISTS:
        sources = _read_list(path)
    elif path.is_file():
        sources = [Source(str(path), path.name)]
    elif glob.has_magic(source):
        found = sorted(Path(name) for name in glob.glob(source, recursive=True) if os.path.isfile(name))
        sources = [_from_file(file, _fixed_part(source)) for file in found if _is_video(file)]
        ignored = len(found) - len(sources)
    else:
        raise FileNotFoundError(f"{source}: no such folder, list or video, and not a glob pattern")
    if not sources:
        raise ValueError(
            f"{source}: no videos found ({ignored} other files); looked for {', '.join(sorted(EXTENSIONS))}"
        )
    unique = {source.key: source for source in reversed(sources)}
    once = tuple(entry for entry in sources if unique[entry.key] is entry)
    repeated = tuple(entry.name for entry in sources if unique[entry.key] is not entry)
    return Listing(once, _name_classes(once, source), ignored, repeated)


def _walk(folder: Path) -> Iterator[Path]:
    """Regular files, visiting each folder once: links may form cycles, and reading a pipe would never end."""
    seen: set[tuple[int, int]] = set()
    for where, folders, files in os.walk(folder, followlinks=True, onerror=_warn_unreadable):
        status = os.stat(where)
        if (status.st_dev, status.st_ino) in seen:
            logger.warning("%s: skipped, it links to a folder that was already read", printable(where))
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            path = Path(where) / name
            if not name.startswith(".") and _is_video(path) and path.exists() and not path.is_file():
                logger.warning("%s: skipped, it is not a regular file", printable(str(path)))
            elif not name.startswith("."):
                yield path


def _warn_unreadable(error: OSError) -> None:
    logger.warning("%s: skipped, the folder cannot be read (%s)", printable(str(error.filename)), error.strerror)


def _is_video(path: Path) -> bool:
    return path.suffix.lower().lstrip(".") in EXTENSIONS


def _from_file(path: Path, root: Path) -> Source:
    name = path.relative_to(root)
    return Source(str(path), name.as_posix(), name.parts[0] if len(name.parts) > 1 else None)


def _fixed_part(pattern: str) -> Path:
    parts = Path(pattern).parts
    fixed = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    return Path(*parts[:fixed]) if fixed else Path()


def _read_list(path: Path) -> list[Source]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            lines = file.read().splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: a list of videos must be UTF-8 text ({error})") from error
    lines = [line for line in lines if line.strip()]
    if not lines:
        raise ValueError(f"{path}: the list is empty; write one video per line")
    if "\0" in "".join(lines):
        raise ValueError(f"{path}: a list of videos must be text, found a zero byte")
    delimiter = "\t" if "\t" in lines[0] else ","
    try:
        header = [name.strip().lower() for name in next(csv.reader([lines[0]], delimiter=delimiter))]
        if "path" in header:
            return _read_table(path, lines, header, delimiter)
        return [_parse_line(path, number, line) for number, line in enumerate(lines, 1)]
    except csv.Error as error:
        raise ValueError(f"{path}: not a readable table ({error}); write one video per line") from error


def _read_table(path: Path, lines: Sequence[str], header: list[str], delimiter: str) -> list[Source]:
    sources = []
    unknown = set(header) - {"path", "label", "start", "end"}
    if unknown:
        raise ValueError(f"{path}: allowed columns are path, label, start and end; found {', '.join(sorted(unknown))}")
    for number, row in enumerate(csv.reader(lines[1:], delimiter=delimiter), 2):
        if len(row) != len(header):
            raise ValueError(f"{path}, line {number}: {len(header)} columns expected, found {len(row)}: {row}")
        cells = {name: cell.strip() for name, cell in zip(header, row, strict=True)}
        try:
            start, end = float(cells.get("start") or 0), float(cells.get("end") or 0)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: start and end must be numbers of seconds, found {row}") from error
        if not 0 <= start < math.inf or math.isnan(end) or (end and end <= start):
            raise ValueError(f"{path}, line {number}: need 0 <= start < end, found {start:g} and {end:g}")
        sources.append(_listed(path, cells["path"], cells.get("label") or None, start, end))
    return sources


def _parse_line(path: Path, number: int, line: str) -> Source:
    """`path`, `path label`, `path,label` or `path<tab>label`; a line that is an existing path is never split."""
    line = line.strip()
    if (path.parent / line).exists():
        return _listed(path, line, None)
    for delimiter in ("\t", ","):
        if delimiter in line:
            row = next(csv.reader([line], delimiter=delimiter))
            if len(row) != 2:
                raise ValueError(f"{path}, line {number}: `path{delimiter}label` expected, found {line!r}")
            return _listed(path, row[0].strip(), row[1].strip() or None)
    fields = line.rsplit(maxsplit=1)
    if len(fields) == 2 and not _is_video(Path(line)):
        return _listed(path, fields[0], fields[1])
    return _listed(path, line, None)


def _listed(file: Path, name: str, label: str | None, start: float = 0.0, end: float = 0.0) -> Source:
    if not name:
        raise ValueError(f"{file}: every line needs a path, found one without")
    where = file.parent / name
    relative = where.relative_to(file.parent).as_posix() if where.is_relative_to(file.parent) else where.as_posix()
    return Source(str(where), relative, label, start, end)


def _name_classes(sources: Sequence[Source], source: str) -> list[str]:
    """Class names in alphabetical order; integer labels keep their values."""
    labels = {entry.label for entry in sources if entry.label is not None}
    numbers = {label for label in labels if label.isascii() and label.isdigit()}
    if numbers and numbers == labels:
        if any(len(label) > MAX_LABEL_DIGITS or str(int(label)) != label for label in labels):
            return sorted(labels)
        return [str(number) for number in range(max(map(int, labels)) + 1)]
    return sorted(labels)
