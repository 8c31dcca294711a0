"""Random access to the samples of tar shards: (shard, index) -> key, video bytes, sidecar.

Tar headers are read once per opened shard with the standard library's tarfile: webdataset reads tars sequentially,
while resuming at any position and shuffling inside shards need offsets. Members that are not on an allow-list are never
read, and nothing is unpickled. Shards are checked against the manifest: a truncated shard is an error.
"""

import json
import math
import os
import tarfile
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

from data.decode import DecodeError, Decoder
from data.isolation import TIMEOUT, probe_isolated
from data.loading.clips import Timing
from data.loading.remote import Cache, is_url, join_url
from data.manifest import Manifest, Shard
from data.text import printable

PICTURES = ("jpg", "jpeg", "png")
VIDEOS = ("mp4", "m4v", "mov", "mkv", "webm", "avi", "mpg", "mpeg", "ts", "wmv", "flv", "ogv", "3gp")
SIDECARS = frozenset(("json", "cls"))
MAX_FRAMES = 10_000_000  # per video; four days at 25 fps
MAX_LABEL = 1 << 31
MAX_SIDECAR = 64 << 20  # bytes; parsed, it takes about twenty times as much
MAX_KEY = 1000  # characters
MAX_HEADER = 1 << 20  # bytes of an extended tar header
ALLOWED = frozenset((*PICTURES, *VIDEOS, *SIDECARS))


@dataclass(frozen=True)
class Sample:
    """One sample as stored in a shard."""

    key: str
    video: bytes
    extension: str
    meta: dict[str, Any]  # the sidecar, see docs/data.md


@dataclass
class _Entry:
    key: str
    members: dict[str, tuple[int, int]] = field(default_factory=dict)  # extension -> offset, size


@dataclass
class _OpenShard:
    file: BinaryIO
    entries: list[_Entry]


class ShardReader:
    """Reads samples of a data set, with at most `keep` shards open; remote shards are fetched through `cache`."""

    def __init__(self, manifest: Manifest, keep: int = 16, cache: Cache | None = None) -> None:
        self.manifest = manifest
        self.keep = keep
        self.cache = cache
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()

    def key(self, shard: int, index: int) -> str:
        """The key of a sample, without reading the sample; printable, and cut off after MAX_KEY characters."""
        entries = self._shard(shard).entries
        return (
            printable(entries[index].key[:MAX_KEY])
            if index < len(entries)
            else f"{self.manifest.shards[shard].name}#{index}"
        )

    def read(self, shard: int, index: int) -> Sample:
        """One sample; DecodeError if its video or sidecar is missing or malformed."""
        opened = self._shard(shard)
        if index >= len(opened.entries):
            found, wanted = len(opened.entries), self.manifest.shards[shard].samples
            detail = f"{self._name(shard)}: {found} samples can be read, the manifest says {wanted}; restore the shard"
            raise DecodeError("missing in its shard", detail)
        entry = opened.entries[index]
        if not entry.key or len(entry.key) > MAX_KEY or printable(entry.key) != entry.key:
            problem = f"{self.key(shard, index)!r} is empty, longer than {MAX_KEY}, not UTF-8 or has control characters"
            raise DecodeError("malformed key", problem)
        extension = next((e for e in entry.members if e not in SIDECARS), None)
        if extension is None:
            raise DecodeError("no video in the sample", entry.key)
        video = _read_member(opened.file, *entry.members[extension])
        if len(video) != entry.members[extension][1]:
            raise DecodeError("cut short", f"{self._name(shard)} ends inside sample {entry.key}; restore the shard")
        return Sample(entry.key, video, extension, _read_meta(opened.file, entry))

    def close(self) -> None:
        """Close all open shards."""
        while self._open:
            self._open.popitem()[1].file.close()

    def _shard(self, number: int) -> _OpenShard:
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        while len(self._open) >= self.keep:
            self._open.popitem(last=False)[1].file.close()
        shard, name = self.manifest.shards[number], self._name(number)
        if is_url(name):
            if self.cache is None:
                raise ValueError(f"{name}: a remote shard needs a cache folder")
            path = self.cache.fetch(name, shard.bytes, shard.sha256)
        else:
            path = Path(name)
        self._open[number] = _open_shard(path, shard)
        return self._open[number]

    def _name(self, number: int) -> str:
        return join_url(self.manifest.folder, self.manifest.shards[number].name)


def read_timing(sample: Sample, timeout: float = TIMEOUT) -> Timing:
    """Frame timing from the sidecar, or, for shards packed by other tools, by decoding the whole video."""
    meta = sample.meta
    try:
        if "frames" not in meta or "fps" not in meta:
            info = probe_isolated(sample.video, timeout)
            return Timing(info.frames, info.fps, info.times)
        return Timing(_count(meta["frames"]), _number(meta["fps"], "fps"), _times(meta.get("times")))
    except DecodeError:
        raise
    except (TypeError, ValueError, OverflowError) as error:
        raise DecodeError("malformed sidecar", str(error)[:200]) from error


def read_label(sample: Sample, classes: int = 0) -> int:
    """The label, -1 if there is none; `classes` is the number of class names in the manifest, 0 if it has none."""
    label = sample.meta.get("label")
    if label is None:
        return -1
    if isinstance(label, bool) or not isinstance(label, int):
        raise DecodeError("malformed sidecar", f"label must be an integer or null, found {str(label)[:40]!r}")
    if not -1 <= label < (classes or MAX_LABEL):
        limit = f"{classes - 1}, for {classes} classes" if classes else str(MAX_LABEL - 1)
        raise DecodeError("malformed sidecar", f"label must be null or from -1 to {limit}, found {str(label)[:40]}")
    return label


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_FRAMES:
        raise ValueError(f"frames must be an integer from 1 to {MAX_FRAMES}, found {_show(value)}")
    return value


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, found {_show(value)}")
    return float(value)


def _times(value: Any) -> list[float] | None:
    if value is None:
        return None
    if not isinstance(value, list):
        raise ValueError(f"times must be a list of seconds, found {_show(value)}")
    times = [_number(time, "times") for time in value]
    if any(later < earlier for earlier, later in pairwise(times)):
        raise ValueError("times must not decrease")
    return times


def _show(value: Any) -> str:
    """A value for an error message, shortened; Python refuses to print integers of thousands of digits."""
    try:
        return repr(value)[:40]
    except ValueError:
        return "an integer of thousands of digits"


def choose_decoder(sample: Sample, wanted: Decoder = "av") -> Decoder:
    """`wanted`, but PyAV instead of auto if packing found that only PyAV returns the right frames."""
    return "av" if wanted == "auto" and sample.meta.get("decoder") == "av" else wanted


def _open_shard(path: Path, shard: Shard) -> _OpenShard:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such shard, although the manifest lists it; restore it or pack again")
    if path.stat().st_size != shard.bytes:
        found = path.stat().st_size
        raise ValueError(f"{path}: {found} bytes, the manifest says {shard.bytes}; the shard is damaged, restore it")
    file = open(path, "rb")  # noqa: SIM115 -- kept by the reader, which closes it
    try:
        entries = _read_index(file)
    except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:
        file.close()
        raise ValueError(f"{path}: not a valid tar file ({error}); restore the shard or pack again") from error
    if len(entries) > shard.samples:  # a damaged name separates a sidecar from its video
        entries = [entry for entry in entries if entry.members.keys() - SIDECARS]
    if len(entries) > shard.samples or not entries:
        file.close()
        raise ValueError(
            f"{path}: {len(entries)} samples, the manifest says {shard.samples}; the shard is damaged, restore it"
        )
    return _OpenShard(file, entries)


def _read_index(file: BinaryIO) -> list[_Entry]:
    """Samples in the order of their first member; only regular files on the allow-list are used."""
    entries: dict[str, _Entry] = {}
    bounded: Any = _ShortReads(file)
    with tarfile.open(fileobj=bounded, mode="r:") as tar:
        for member in _whole_members(tar):
            tar.members = []  # type: ignore[attr-defined]  # tarfile keeps every header otherwise
            folder, _, name = member.name.rpartition("/")
            stem, dot, extension = name.partition(".")
            extension = extension.lower()
            if not member.isreg() or not dot or extension not in ALLOWED:
                continue
            key = f"{folder}/{stem}" if folder else stem
            entries.setdefault(key, _Entry(key)).members[extension] = (member.offset_data, member.size)
    return list(entries.values())


class _ShortReads:
    """A file that returns at most MAX_HEADER bytes at once: tarfile asks for as many as a header claims to have."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, count: int) -> bytes:
        return self.file.read(min(max(count, 0), MAX_HEADER))


def _whole_members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Members up to the first corrupt header; samples after it are counted as missing."""
    found = False
    try:
        for member in tar:
            if member.size < 0 or member.offset_data < 0:
                return
            found = True
            yield member
    except (tarfile.TarError, ValueError, OverflowError, OSError):
        if not found:
            raise


def _read_member(file: BinaryIO, offset: int, size: int) -> bytes:
    """The content of a member, shorter than `size` if the file ends before."""
    end = file.seek(0, os.SEEK_END)
    file.seek(min(offset, end))
    return file.read(min(size, max(end - offset, 0)))


def _read_meta(file: BinaryIO, entry: _Entry) -> dict[str, Any]:
    meta: dict[str, Any] = {}
    if "json" in entry.members:
        try:
            offset, size = entry.members["json"]
            if size > MAX_SIDECAR:
                raise ValueError(f"{size} bytes, at most {MAX_SIDECAR} are read")
            meta = json.loads(_read_member(file, offset, size))
        except (ValueError, RecursionError) as error:  # not JSON or UTF-8, integers too long, nested too deeply
            raise DecodeError("malformed sidecar", f"{entry.key}.json: {str(error)[:120]}") from error
        if not isinstance(meta, dict):
            raise DecodeError("malformed sidecar", f"{entry.key}.json must hold an object, found {type(meta).__name__}")
    if "cls" in entry.members and "label" not in meta:
        text = _read_member(file, entry.members["cls"][0], min(entry.members["cls"][1], 100))
        try:
            meta["label"] = int(text)
        except ValueError as error:
            raise DecodeError(
                "malformed sidecar", f"{entry.key}.cls must hold an integer, found {ascii(text)[:40]}"
            ) from error
    return meta
