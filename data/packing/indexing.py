"""Index files for tar shards: of a packed set, and of webdataset shards that other tools wrote.

Foreign shards (video2dataset's, for instance) have no manifest and no frame counts. Their videos are examined once, as
`pack` would, and what was measured goes into the index beside each tar; the tars themselves are only read. An index
that is there and fits is kept, so an interrupted run continues.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.decode import DecodeError, is_picture
from data.decoder_process import MEMORY, limit_memory, memory_in_use
from data.files import write_bytes
from data.index import Entry, IndexFileError, ShardIndex, TarFacts, add_checksums, encode_index
from data.loading.tars import SIDECARS, LocalTar, index_path, load_index, scan_local
from data.manifest import NAME, Manifest, Rejection, Shard
from data.packing.examine import find_decoder
from data.packing.journal import Totals
from data.parallel import count_cores, map_in_order

Progress = Callable[[int, int, str], None]  # shards done, shards in total, the shard at hand


@dataclass(frozen=True)
class _Video:
    """A sample of a foreign shard, to be examined."""

    tar: str
    offset: int
    size: int


@dataclass
class IndexReport:
    """What `index_folder` has done."""

    written: int = 0  # index files
    kept: int = 0
    samples: int = 0
    rejected: list[Rejection] = field(default_factory=list)
    repeated: int = 0  # keys that occur in more than one shard
    foreign: bool = False


def write_index(path: Path, sha256: str) -> None:
    """Index a tar that is known by its sha256; equal tars give equal bytes."""
    tar = LocalTar(path)
    try:
        found = scan_local(tar, TarFacts(tar.size, sha256))
        write_bytes(index_path(path), encode_index(add_checksums(found, tar.descriptor)))
    finally:
        tar.close()


def index_folder(folder: Path, jobs: int = -1, timeout: float = 600.0, progress: Progress | None = None) -> IndexReport:
    """Write what index files are missing or stale, and a manifest if there is none.

    Raises FileNotFoundError without tars, ValueError if a tar is damaged or no video in them can be used.
    """
    show = progress or (lambda done, total, name: None)
    if (folder / NAME).is_file():
        manifest = Manifest.load(folder)
        if not manifest.indexed:
            return _index_packed(folder, manifest, show)
    return _index_foreign(folder, count_cores() if jobs < 0 else max(jobs, 1), timeout, show)


def _index_packed(folder: Path, manifest: Manifest, show: Progress) -> IndexReport:
    report = IndexReport(samples=manifest.samples)
    for number, shard in enumerate(manifest.shards):
        show(number, len(manifest.shards), shard.name)
        path = folder / shard.name
        if not path.is_file() or path.stat().st_size != shard.bytes:
            raise ValueError(f"{path}: not the {shard.bytes} bytes that the manifest says; restore the shard")
        kept = _stored(path, shard.sha256)
        if kept is None:
            write_index(path, shard.sha256)
        report.kept += kept is not None
        report.written += kept is None
    show(len(manifest.shards), len(manifest.shards), "")
    return report


def _index_foreign(folder: Path, jobs: int, timeout: float, show: Progress) -> IndexReport:
    tars = sorted(path for path in folder.rglob("*.tar") if not path.name.startswith("."))
    if not tars:
        raise FileNotFoundError(f"{folder}: no tar files here; give the folder of webdataset shards")
    report, totals, shards, keys = IndexReport(foreign=True), Totals(), [], set[str]()
    for number, path in enumerate(tars):
        show(number, len(tars), path.name)
        index = _stored(path, "")
        if index is None:
            index = _measure(path, jobs, timeout)
            write_bytes(index_path(path), encode_index(index))
            report.written += 1
        else:
            report.kept += 1
        name = path.relative_to(folder).as_posix()
        report.rejected += [Rejection(f"{name}/{key}", reason) for key, reason in index.rejected]
        for entry in index:
            totals.add({"label": None, **entry.timing})
            report.repeated += entry.key in keys
            keys.add(entry.key)
        if len(index):
            shards.append(Shard(name, len(index), index.tar.bytes, ""))
    report.samples = sum(shard.samples for shard in shards)
    if not report.samples:
        reasons = "; ".join(f"{one.path}: {one.reason}" for one in report.rejected[:3]) or "no videos in them"
        raise ValueError(f"{folder}: not one sample of {len(tars)} tars can be used ({reasons})")
    made = {"by": "python -m launch index", "options": {}, "sources": _digest(shards)}
    Manifest(
        str(folder), tuple(shards), totals=totals.to_dict(), made=made, rejected=tuple(report.rejected), indexed=True
    ).save()
    show(len(tars), len(tars), "")
    return report


def _stored(path: Path, sha256: str) -> ShardIndex | None:
    """The index beside a tar, if it is there, whole and made for this tar."""
    tar = LocalTar(path)
    try:
        found = load_index(tar, sha256)
    except IndexFileError:
        return None
    finally:
        tar.close()
    return None if found is None or bool(found.tar.sha256) != bool(sha256) else found


def _measure(path: Path, jobs: int, timeout: float) -> ShardIndex:
    """Examine every video of a foreign tar."""
    tar = LocalTar(path)
    try:
        facts = TarFacts(tar.size, modified=os.fstat(tar.descriptor).st_mtime_ns)
        found = add_checksums(scan_local(tar, facts), tar.descriptor)
    finally:
        tar.close()
    used, rejected, videos = [], [], []
    for entry in found:
        member = next((entry.members[name] for name in entry.members if name not in SIDECARS), None)
        if member is None:
            rejected.append((entry.key, "no video in the sample"))
        elif member.offset + member.size > tar.size:
            rejected.append((entry.key, "cut short: the tar ends inside it"))
        else:
            used.append(entry)
            videos.append(_Video(str(path), member.offset, member.size))
    entries = []
    for entry, (timing, reason) in zip(used, _examine_all(videos, jobs, timeout), strict=True):
        if reason:
            rejected.append((entry.key, reason))
        else:
            entries.append(Entry(entry.key, entry.members, timing))
    return ShardIndex(entries, facts, rejected)


def _examine_all(videos: list[_Video], jobs: int, timeout: float) -> Iterator[tuple[dict[str, Any], str]]:
    yield from map_in_order(_examine, videos, jobs, timeout, lambda video, reason: ({}, reason), _limit)


def _examine(video: _Video) -> tuple[dict[str, Any], str]:
    """What the loader has to know of a video, or why it cannot be used."""
    tar = LocalTar(Path(video.tar))
    try:
        content = tar.read(video.offset, video.size)
        if is_picture(content):
            return {"frames": 1, "fps": 1.0, "duration": 1.0, "width": 0, "height": 0, "codec": "picture"}, ""
        info, decoder = find_decoder(content)
    except DecodeError as error:
        return {}, str(error)
    except MemoryError:
        return {}, f"out of memory: more than {MEMORY >> 30} GiB"
    except (OSError, ValueError, ArithmeticError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        return {}, f"not decodable: {type(error).__name__}: {str(error)[:160]}"
    finally:
        tar.close()
    timing = {
        "frames": info.frames, "fps": info.fps, "duration": round(info.duration, 3), "width": info.width,
        "height": info.height, "codec": info.codec, "decoder": decoder,
    }  # fmt: skip
    return timing | ({} if info.times is None else {"times": list(info.times)}), ""


def _limit(video: _Video) -> None:
    """Limit the memory of a worker process, as `pack` does."""
    global _base
    _base = _base or memory_in_use()
    limit_memory(_base + MEMORY + 3 * video.size)


_base = 0  # memory of a worker process before its first video


def _digest(shards: Iterable[Shard]) -> str:
    lines = "".join(f"{shard.name}\t{shard.bytes}\n" for shard in shards)
    return hashlib.sha256(lines.encode()).hexdigest()[:16]
