"""The index of a tar shard: where the members of each sample lie, so that a sample takes one positioned read.

`NAME.tar.index` lies beside `NAME.tar`. It is one line of JSON, then arrays (little endian) and texts:

    {"format": "shard-index/1", "samples": S, "members": M, "tar": {...}, "extensions": [...], "keys": K, "timing": J,
     "crc32": of all that follows the line}
    uint8 [S]  members of each sample      uint8 [M]  extension of each member, an index into `extensions`
    int64 [M]  offset of its content       int64 [M]  its size          uint32 [M]  crc32 of its 512-byte tar header
    K bytes: the keys, with zero bytes between
    J bytes: measured frame times, one JSON object a line (foreign shards only)

`tar` says which file the index was made for: its size, and its sha256 or, where that is unknown, its modification time
or ETag. A read includes the headers, whose checksums show that the tar is still that one.
"""

import json
import os
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

FORMAT = "shard-index/1"
SUFFIX = ".index"
HEADER = 512  # bytes of a tar header
MAX_HEADER = 1 << 20  # bytes of an extended tar header
MAX_LINE = 1 << 24  # bytes of the index's first line
MAX_SAMPLES = 4_000_000
UNCHECKED = -1  # in place of a checksum: the header itself was read just now


class IndexFileError(ValueError):
    """An index file that is damaged, or was made for another tar."""


@dataclass(frozen=True)
class TarFacts:
    """Which file an index was made for."""

    bytes: int
    sha256: str = ""  # "" if unknown
    modified: int = 0  # nanoseconds since 1970; 0 if sha256 is known
    etag: str = ""  # of a remote file


@dataclass(frozen=True)
class Member:
    """One file of a tar."""

    offset: int  # of its content
    size: int
    crc: int = UNCHECKED  # of its header, which lies before the content


@dataclass(frozen=True)
class Entry:
    """One sample."""

    key: str
    members: dict[str, Member]  # by extension, in the order of the tar
    timing: dict[str, Any] = field(default_factory=dict)  # frames, fps, times, decoder, where they were measured


class ShardIndex:
    """The samples of one tar, in the order of their first members."""

    def __init__(self, entries: Sequence[Entry], tar: TarFacts, rejected: Sequence[tuple[str, str]] = ()) -> None:
        self.tar = tar
        self.rejected = tuple(rejected)  # key and reason, of samples of a foreign shard that cannot be used
        self._entries: Sequence[Entry] = entries

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, number: int) -> Entry:
        return self._entries[number]

    def __iter__(self) -> Iterator[Entry]:
        return (self[number] for number in range(len(self)))

    def keep(self, wanted: Sequence[Entry]) -> "ShardIndex":
        """An index with only these samples."""
        return ShardIndex(list(wanted), self.tar, self.rejected)


class _StoredEntries(Sequence[Entry]):
    """Entries in arrays, made into objects one by one."""

    def __init__(
        self, arrays: tuple[NDArray[Any], ...], extensions: list[str], keys: list[str], timing: list[bytes]
    ) -> None:
        counts, self.kinds, self.offsets, self.sizes, self.crcs = arrays
        self.ends = np.cumsum(counts, dtype=np.int64)
        self.extensions, self.keys, self.timing = extensions, keys, timing

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, number: Any) -> Any:
        first, end = int(self.ends[number - 1]) if number else 0, int(self.ends[number])
        members = {
            self.extensions[self.kinds[i]]: Member(int(self.offsets[i]), int(self.sizes[i]), int(self.crcs[i]))
            for i in range(first, end)
        }
        return Entry(self.keys[number], members, json.loads(self.timing[number]) if self.timing else {})


def encode_index(index: ShardIndex) -> bytes:
    """The bytes of an index file; equal samples give equal bytes."""
    entries = list(index)
    members = [member for entry in entries for member in entry.members.values()]
    kinds = [extension for entry in entries for extension in entry.members]
    extensions = sorted(set(kinds))
    keys = "\0".join(entry.key for entry in entries).encode(errors="surrogateescape")
    timed = any(entry.timing for entry in entries)
    timing = "\n".join(json.dumps(entry.timing, separators=(",", ":")) for entry in entries).encode() if timed else b""
    body = b"".join(
        [
            np.asarray([len(entry.members) for entry in entries], np.uint8).tobytes(),
            np.asarray([extensions.index(kind) for kind in kinds], np.uint8).tobytes(),
            np.asarray([member.offset for member in members], "<i8").tobytes(),
            np.asarray([member.size for member in members], "<i8").tobytes(),
            np.asarray([member.crc for member in members], "<u4").tobytes(),
            keys,
            timing,
        ]
    )
    line = {
        "format": FORMAT,
        "samples": len(entries),
        "members": len(members),
        "tar": asdict(index.tar),
        "extensions": extensions,
        "keys": len(keys),
        "timing": len(timing),
        "crc32": zlib.crc32(body),
        **({"rejected": index.rejected} if index.rejected else {}),
    }
    return json.dumps(line, separators=(",", ":")).encode() + b"\n" + body


def decode_index(content: bytes, name: str, allowed: frozenset[str]) -> ShardIndex:
    """Read an index file; IndexFileError naming `name` if it is damaged. `allowed`: extensions that may occur."""
    try:
        return _decode(content, allowed)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise IndexFileError(
            f"{name}: not a valid index ({error}); write it again with `vjepa index FOLDER`, or delete it"
        ) from error


def _decode(content: bytes, allowed: frozenset[str]) -> ShardIndex:
    line, found, body = content[:MAX_LINE].partition(b"\n")
    head = json.loads(line)
    if not found or not isinstance(head, dict) or head.get("format") != FORMAT:
        raise ValueError(f"format must be {FORMAT!r}")
    start = len(line) + 1
    body = content[start:]
    samples, members, extensions = head["samples"], head["members"], head["extensions"]
    if not all(type(count) is int and count >= 0 for count in (samples, members, head["keys"], head["timing"])):
        raise ValueError("counts must be integers from 0")
    if zlib.crc32(body) != head["crc32"]:
        raise ValueError("its checksum does not fit its content, it was cut short or damaged")
    if samples > MAX_SAMPLES or samples + 21 * members + head["keys"] + head["timing"] != len(body):
        raise ValueError(f"{len(body)} bytes do not hold {samples} samples with {members} members")
    if not isinstance(extensions, list) or not allowed.issuperset(extensions):
        raise ValueError(f"extensions must be among {', '.join(sorted(allowed))}")
    facts = head["tar"]
    tar = TarFacts(int(facts["bytes"]), str(facts["sha256"]), int(facts["modified"]), str(facts["etag"]))
    arrays, at = [], 0
    for kind, count in (("u1", samples), ("u1", members), ("<i8", members), ("<i8", members), ("<u4", members)):
        arrays.append(np.frombuffer(body, kind, count, at))
        at += arrays[-1].nbytes
    counts, kinds, offsets, sizes, _ = arrays
    if int(counts.sum(dtype=np.int64)) != members or (members and int(kinds.max()) >= len(extensions)):
        raise ValueError("its members do not add up")
    if members and (offsets.min() < HEADER or sizes.min() < 0 or (sizes > tar.bytes - offsets).any()):
        raise ValueError(f"a member lies outside the {tar.bytes} bytes of the tar")
    keys = body[at : at + head["keys"]].decode(errors="surrogateescape").split("\0") if samples else []
    timing = body[at + head["keys"] :].split(b"\n") if head["timing"] else []
    if len(keys) != samples or len(timing) not in (0, samples):
        raise ValueError(f"{len(keys)} keys and {len(timing)} times for {samples} samples")
    rejected = [(str(key), str(reason)) for key, reason in head.get("rejected", [])]
    return ShardIndex(_StoredEntries(tuple(arrays), extensions, keys, timing), tar, rejected)


def scan_tar(file: BinaryIO, allowed: frozenset[str], tar: TarFacts) -> ShardIndex:
    """Read all headers of a tar; only regular files with an allowed extension are listed, up to a corrupt header.

    Raises tarfile.TarError, ValueError, OverflowError or EOFError if not even the first header is valid.
    """
    entries: dict[str, Entry] = {}
    bounded: Any = _ShortReads(file)
    with tarfile.open(fileobj=bounded, mode="r:") as opened:
        for member in _whole_members(opened):
            opened.members = []  # type: ignore[attr-defined]  # tarfile keeps every header otherwise
            folder, _, name = member.name.rpartition("/")
            stem, dot, extension = name.partition(".")
            extension = extension.lower()
            if not member.isreg() or not dot or extension not in allowed:
                continue
            key = f"{folder}/{stem}" if folder else stem
            entries.setdefault(key, Entry(key, {})).members[extension] = Member(member.offset_data, member.size)
    return ShardIndex(list(entries.values()), tar)


def add_checksums(index: ShardIndex, descriptor: int) -> ShardIndex:
    """The same index with the checksums of all headers, read from the open tar."""

    def check(member: Member) -> Member:
        header = os.pread(descriptor, HEADER, member.offset - HEADER)
        return Member(member.offset, member.size, zlib.crc32(header))

    entries = [
        Entry(entry.key, {name: check(member) for name, member in entry.members.items()}, entry.timing)
        for entry in index
    ]
    return ShardIndex(entries, index.tar, index.rejected)


def check_made_for(index: ShardIndex, name: str, tar: str, size: int, sha256: str) -> None:
    """Raise IndexFileError, naming the stale index `name`, if it was made for a tar of another size or content."""
    made = index.tar
    if made.bytes != size:
        found, wanted = f"a tar of {made.bytes} bytes", f"{size}"
    elif made.sha256 and sha256 and made.sha256 != sha256:
        found, wanted = f"a tar with sha256 {made.sha256[:12]}...", f"{sha256[:12]}..."
    else:
        return
    raise IndexFileError(
        f"{name}: the index is stale, it was made for {found}, but {tar} has {wanted}; run `vjepa index FOLDER`"
    )


def matches(header: bytes, member: Member) -> bool:
    """Whether a tar header is the one the index has seen."""
    return member.crc == UNCHECKED or zlib.crc32(header) == member.crc


def cover(members: Mapping[str, Member], slack: int) -> list[tuple[int, int]]:
    """The fewest reads (start, end) for these members and their headers, with at most `slack` unused bytes between."""
    spans: list[tuple[int, int]] = []
    for member in sorted(members.values(), key=lambda one: one.offset):
        start, end = member.offset - HEADER, member.offset + member.size
        if spans and start - spans[-1][1] <= slack:
            spans[-1] = spans[-1][0], max(end, spans[-1][1])
        else:
            spans.append((start, end))
    return spans


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
