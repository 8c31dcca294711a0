"""Random access to the samples of tar shards: (shard, index) -> key, video bytes, sidecar.

An index beside the tar (data/index.py) says where each sample lies: it takes one positioned read, from a local file or
by a range request. Shards without an index have all their headers read when they are opened, and remote ones are
fetched whole, as are those that cannot be read by ranges. Members that are not on an allow-list are never read, and
nothing is unpickled. Shards are checked against the manifest: a truncated shard is an error.
"""

import json
import logging
import math
from collections import OrderedDict
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from data.decode import DecodeError, Decoder
from data.index import HEADER, SUFFIX, Entry, Member, ShardIndex, cover, matches
from data.isolation import TIMEOUT, probe_isolated
from data.loading.clips import Timing
from data.loading.ranges import NotSeekableError, can_seek
from data.loading.remote import OUTAGE, Cache, is_url, join_url
from data.loading.tars import ALLOWED, PICTURES, SIDECARS, VIDEOS, LocalTar, RemoteTar, open_local, read_remote_index
from data.manifest import Manifest
from data.text import printable

__all__ = ["ALLOWED", "PICTURES", "SIDECARS", "VIDEOS", "Sample", "ShardReader", "choose_decoder", "read_label",
           "read_timing"]  # fmt: skip

logger = logging.getLogger(__name__)

MAX_FRAMES = 10_000_000  # per video; four days at 25 fps
MAX_LABEL = 1 << 31
MAX_SIDECAR = 64 << 20  # bytes; parsed, it takes about twenty times as much
SLACK = 1 << 16  # bytes between two members of a sample that are read along rather than read twice
MAX_KEY = 1000  # characters


@dataclass(frozen=True)
class Sample:
    """One sample as stored in a shard."""

    key: str
    video: bytes
    extension: str
    meta: dict[str, Any]  # the sidecar, see docs/data.md


@dataclass
class _OpenShard:
    tar: LocalTar | RemoteTar
    index: ShardIndex


class ShardReader:
    """Reads samples of a data set, with at most `keep` shards open.

    cache: holds the remote shards that are fetched whole. whole: fetch all of them; otherwise only those that have no
    index or cannot be read by ranges.
    """

    def __init__(self, manifest: Manifest, keep: int = 16, cache: Cache | None = None, whole: bool = False) -> None:
        self.manifest = manifest
        self.keep = keep
        self.cache = cache
        self.whole = whole
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()

    def key(self, shard: int, index: int) -> str:
        """The key of a sample, without reading the sample; printable, and cut off after MAX_KEY characters."""
        entries = self._shard(shard).index
        return (
            printable(entries[index].key[:MAX_KEY])
            if index < len(entries)
            else f"{self.manifest.shards[shard].name}#{index}"
        )

    def read(self, shard: int, index: int) -> Sample:
        """One sample; DecodeError if its video or sidecar is missing or malformed."""
        opened = self._shard(shard)
        if index >= len(opened.index):
            found, wanted = len(opened.index), self.manifest.shards[shard].samples
            detail = f"{self._name(shard)}: {found} samples can be read, the manifest says {wanted}; restore the shard"
            raise DecodeError("missing in its shard", detail)
        entry = opened.index[index]
        if not entry.key or len(entry.key) > MAX_KEY or printable(entry.key) != entry.key:
            problem = f"{self.key(shard, index)!r} is empty, longer than {MAX_KEY}, not UTF-8 or has control characters"
            raise DecodeError("malformed key", problem)
        extension = next((e for e in entry.members if e not in SIDECARS), None)
        if extension is None:
            raise DecodeError("no video in the sample", entry.key)
        try:
            members = self._read(opened, entry, extension)
        except NotSeekableError as error:
            logger.warning("%s; its shards are fetched whole, into data.cache", error)
            self.whole = True
            self.close()
            return self.read(shard, index)
        if len(members[extension]) != entry.members[extension].size:
            raise DecodeError("cut short", f"{self._name(shard)} ends inside sample {entry.key}; restore the shard")
        return Sample(entry.key, members[extension], extension, _parse_meta(entry, members))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}  # another process opens its own

    def close(self) -> None:
        """Close all open shards."""
        while self._open:
            self._open.popitem()[1].tar.close()

    def _read(self, opened: _OpenShard, entry: Entry, extension: str) -> dict[str, bytes]:
        """The members of a sample that are used, by extension; DecodeError if they are not those of the index."""
        wanted = {extension: entry.members[extension]}
        for name in SIDECARS & entry.members.keys():
            size = entry.members[name].size
            wanted[name] = Member(entry.members[name].offset, min(size, MAX_SIDECAR + 1), entry.members[name].crc)
        parts = [(start, opened.tar.read(start, end - start)) for start, end in cover(wanted, SLACK)]
        found = {}
        for name, member in wanted.items():
            start, content = next(part for part in reversed(parts) if part[0] <= member.offset - HEADER)
            at = member.offset - start
            if not matches(content[at - HEADER : at], member):
                raise DecodeError(
                    "does not match its index",
                    f"{opened.tar.name}: at byte {member.offset} is not the sample {entry.key} that {SUFFIX[1:]} "
                    "lists; if the shard was replaced, run `vjepa index FOLDER`, else restore it",
                )
            found[name] = content[at : at + member.size]
        return found

    def _shard(self, number: int) -> _OpenShard:
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        while len(self._open) >= self.keep:
            self._open.popitem(last=False)[1].tar.close()
        shard, name = self.manifest.shards[number], self._name(number)
        index = None
        if is_url(name) and (self.manifest.indexed or not (self.whole or not can_seek(name))):
            index = read_remote_index(name, shard, self._allow_pipe, self._outage)
        if not is_url(name):
            self._open[number] = _OpenShard(*open_local(Path(name), shard, required=self.manifest.indexed))
        elif index is not None and can_seek(name) and not self.whole:
            self._open[number] = _OpenShard(RemoteTar(name, index.tar, self._outage), index)
        else:
            if self.cache is None:
                raise ValueError(f"{name}: a remote shard needs a cache folder")
            path = self.cache.fetch(name, shard.bytes, shard.sha256)
            self._open[number] = _OpenShard(*open_local(path, shard, required=False, index=index))
        return self._open[number]

    @property
    def _outage(self) -> float:
        return OUTAGE if self.cache is None else self.cache.outage

    @property
    def _allow_pipe(self) -> bool:
        return self.cache is not None and self.cache.allow_pipe

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


def _parse_meta(entry: Entry, found: dict[str, bytes]) -> dict[str, Any]:
    """The sidecar of a sample; what was measured when a foreign shard was indexed goes before it."""
    meta: dict[str, Any] = {}
    if "json" in found:
        try:
            if len(found["json"]) > MAX_SIDECAR:
                raise ValueError(f"{entry.members['json'].size} bytes, at most {MAX_SIDECAR} are read")
            meta = json.loads(found["json"])
        except (ValueError, RecursionError) as error:  # not JSON or UTF-8, integers too long, nested too deeply
            raise DecodeError("malformed sidecar", f"{entry.key}.json: {str(error)[:120]}") from error
        if not isinstance(meta, dict):
            raise DecodeError("malformed sidecar", f"{entry.key}.json must hold an object, found {type(meta).__name__}")
    if "cls" in found and "label" not in meta:
        text = found["cls"][:100]
        try:
            meta["label"] = int(text)
        except ValueError as error:
            raise DecodeError(
                "malformed sidecar", f"{entry.key}.cls must hold an integer, found {ascii(text)[:40]}"
            ) from error
    if entry.timing:
        meta.pop("times", None)
        meta |= entry.timing
    return meta
