"""Open tars: positioned reads from a local descriptor or from a URL, each with the index of its samples."""

import os
import tarfile
from pathlib import Path

from data.index import (
    HEADER,
    SUFFIX,
    IndexFileError,
    ShardIndex,
    TarFacts,
    check_made_for,
    decode_index,
    matches,
    scan_tar,
)
from data.loading.ranges import read_range
from data.loading.remote import read_url
from data.manifest import Shard

PICTURES = ("jpg", "jpeg", "png")
VIDEOS = ("mp4", "m4v", "mov", "mkv", "webm", "avi", "mpg", "mpeg", "ts", "wmv", "flv", "ogv", "3gp")
SIDECARS = frozenset(("json", "cls"))
ALLOWED = frozenset((*PICTURES, *VIDEOS, *SIDECARS))


class LocalTar:
    """A local tar with an open descriptor; reads name their position, so that forked processes may share it."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self.descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        self.size = os.fstat(self.descriptor).st_size

    def read(self, start: int, count: int) -> bytes:
        """`count` bytes from `start` on, fewer at the end of the file."""
        count = max(min(count, self.size - start), 0)
        content = os.pread(self.descriptor, count, start)
        while len(content) < count:  # a read returns at most 2 GiB, and fewer on some network file systems
            more = os.pread(self.descriptor, count - len(content), start + len(content))
            if not more:
                break
            content += more
        return content

    def close(self) -> None:
        """Close the descriptor."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
        self.descriptor = -1

    def __del__(self) -> None:
        self.close()


class RemoteTar:
    """A tar behind a URL, read by range requests."""

    def __init__(self, url: str, facts: TarFacts, outage: float) -> None:
        self.name, self.facts, self.outage = url, facts, outage

    def read(self, start: int, count: int) -> bytes:
        """`count` bytes from `start` on; IndexFileError if the file is not the one that was indexed."""
        part = read_range(self.name, start, min(count, self.facts.bytes - start), self.outage)
        changed = self.facts.etag and part.etag and part.etag != self.facts.etag
        if changed or part.total not in (None, self.facts.bytes):
            found = f"ETag {part.etag}" if changed else f"{part.total} bytes"
            wanted = self.facts.etag if changed else self.facts.bytes
            raise IndexFileError(
                f"{self.name}{SUFFIX}: the index is stale, it was made for a tar with {wanted}, the server has "
                f"{found}; run `vjepa index` on the folder and upload it again"
            )
        return part.content

    def close(self) -> None:
        """Nothing to close: connections are shared."""


def open_local(
    path: Path, shard: Shard, required: bool, index: ShardIndex | None = None
) -> tuple[LocalTar, ShardIndex]:
    """A shard and its index: the one given, else of the file beside it, else from the headers.

    Raises FileNotFoundError or ValueError if the shard is not what the manifest says, or its index not the shard's.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such shard, although the manifest lists it; restore it or pack again")
    tar = LocalTar(path)
    try:
        if tar.size != shard.bytes:
            raise ValueError(
                f"{path}: {tar.size} bytes, the manifest says {shard.bytes}; the shard is damaged, restore it"
            )
        index = index or load_index(tar, shard.sha256)
        if index is None and required:
            raise FileNotFoundError(f"{path}{SUFFIX}: missing, but the manifest relies on it; run `vjepa index FOLDER`")
        return tar, _check_count(path, shard, index or scan_local(tar, TarFacts(tar.size)))
    except BaseException:
        tar.close()
        raise


def index_path(path: Path) -> Path:
    """Where the index of a tar lies."""
    return path.with_name(path.name + SUFFIX)


def read_remote_index(url: str, shard: Shard, allow_pipe: bool, outage: float) -> ShardIndex | None:
    """The index beside a remote shard, None if there is none."""
    name = url + SUFFIX
    try:
        content = read_url(name, allow_pipe, outage)
    except FileNotFoundError:
        return None
    index = decode_index(content, name, ALLOWED)
    check_made_for(index, name, url, shard.bytes, shard.sha256)
    if len(index) > shard.samples:
        raise IndexFileError(f"{name}: {len(index)} samples, the manifest says {shard.samples}; index the set again")
    return index


def load_index(tar: LocalTar, sha256: str) -> ShardIndex | None:
    """The index beside a tar, None if there is none; IndexFileError if it is damaged or stale."""
    path = index_path(Path(tar.name))
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    index = decode_index(content, str(path), ALLOWED)
    check_made_for(index, str(path), tar.name, tar.size, sha256)
    if index.tar.modified and os.fstat(tar.descriptor).st_mtime_ns != index.tar.modified:
        _check_ends(index, str(path), tar)
    return index


def scan_local(tar: LocalTar, facts: TarFacts) -> ShardIndex:
    """The samples of a tar without an index, from its headers; ValueError if it is not a tar."""
    try:
        with open(tar.name, "rb") as file:
            return scan_tar(file, ALLOWED, facts)
    except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:
        raise ValueError(f"{tar.name}: not a valid tar file ({error}); restore the shard or pack again") from error


def _check_ends(index: ShardIndex, name: str, tar: LocalTar) -> None:
    """The tar has another time, as after copying: compare the headers of its first and its last sample."""
    for entry in (index[0], index[len(index) - 1]) if len(index) else ():
        for member in entry.members.values():
            if not matches(tar.read(member.offset - HEADER, HEADER), member):
                raise IndexFileError(
                    f"{name}: the index is stale, {tar.name} has changed since it was made; run `vjepa index FOLDER`"
                )


def _check_count(path: Path, shard: Shard, index: ShardIndex) -> ShardIndex:
    if len(index) > shard.samples:  # a damaged name separates a sidecar from its video
        index = index.keep([entry for entry in index if entry.members.keys() - SIDECARS])
    if len(index) > shard.samples or not len(index):
        raise ValueError(
            f"{path}: {len(index)} samples, the manifest says {shard.samples}; the shard is damaged, restore it"
        )
    return index
