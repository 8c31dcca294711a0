"""Seeded random damage to a packed data set: its videos, sidecars, tar headers and manifest.

`damage(seed)` is a pure function: a failing seed is a failing test case. What a data set may do to a reader is checked
by `read_everything`, within limits of time and memory (`limits`).
"""

import contextlib
import io
import json
import random
import resource
import signal
import struct
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from conftest import encode
from PIL import Image

from data.decode import Decoder
from data.decoder_process import limit_memory, memory_in_use
from data.loading.loader import DataConfig, EvalLoader, TrainLoader, Views
from data.manifest import Manifest, Shard
from data.packing.verify import verify_shards
from data.text import printable
from launch.commands.inspect import describe

BLOCK = 512  # bytes of a tar header, and the unit of a tar's content
FRAMES = 8

HOSTILE_JSON = (
    "-1", "0", "1", "-0.0", "1e400", "-1e400", "NaN", "Infinity", "1e-320", "1" + "0" * 18, "1" + "0" * 400,
    "1" + "0" * 5000, "true", "false", "null", '""', '"\\u0000"', '"\\ud800"', '"\\u001b[31m"', '"8"', '"../../x"',
    "[[1], [2], [3], [4], [5], [6], [7], [8]]",
    "[]", "{}", "[[]]", "[0, NaN]", '{"a": {"b": []}}', "[" * 2000 + "]" * 2000, "[" * 100_000, '{"a":' * 3000,
    "[" + "0," * 3000 + "0]", '"' + "x" * 100_000 + '"', "[8, 8, 8, 8, 8, 8, 8, 8]", "[" + "[1, 2, 3]," * 7 + "[1]]",
)  # fmt: skip
SIDECAR_FIELDS = (
    "frames", "fps", "times", "label", "class", "decoder", "states", "actions", "values", "path", "width", "sha256",
)  # fmt: skip
SIZE_FIELDS = (
    b"-0000000001\0", b"77777777777\0", b"99999999999\0", b"\0" * 12, b" " * 12, b"00000000001\0", b"00000001000\0",
    b"\x80" + b"\xff" * 11, b"\xff" * 12, b"\xff" * 11 + b"\0", b"\x80" + b"\0" * 10 + b"\x09",
    b"\x80\0\0\0\x7f" * 2 + b"\0\0",
    b"\x80\0\0\0" + (1 << 40).to_bytes(8, "big"), b"00000000000\0",
)  # fmt: skip
TYPES = b"01234567LKxgXSDVNM\0\xff"


@dataclass(frozen=True)
class Damage:
    """A damaged data set. `harmless`: only samples are damaged, and not all of them, so no run may stop."""

    what: str
    files: dict[str, bytes]
    harmless: bool


@cache
def healthy_files() -> dict[str, bytes]:
    """Two shards of three samples, each in another container, and the manifest."""
    picture = io.BytesIO()
    Image.new("RGB", (40, 30), (90, 20, 20)).save(picture, "JPEG")
    videos = [
        ("mp4", encode(FRAMES)),
        ("mkv", encode(FRAMES, container="matroska")),
        ("avi", encode(FRAMES, codec="mpeg4", container="avi")),
        ("jpg", picture.getvalue()),
        ("ts", encode(FRAMES, container="mpegts")),
        ("mov", encode(FRAMES, container="mov")),
    ]
    files, shards = {}, []
    for number, kind in enumerate((tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT)):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w", format=kind) as tar:
            for index, (extension, video) in enumerate(videos[3 * number : 3 * number + 3]):
                count = 1 if extension == "jpg" else FRAMES
                key = f"{'long/' * 30 if number and index == 1 else ''}sample{number}{index}"
                _add(tar, f"{key}.{extension}", video)
                _add(tar, f"{key}.json", json.dumps(_sidecar(count)).encode())
        name = f"shard-{number:06d}.tar"
        files[name] = file.getvalue()
        shards.append(Shard(name, 3, len(files[name]), ""))
    totals = {
        "seconds": 4.0,
        "frames": 6 * FRAMES,
        "labels": {"0": 6},
        "sizes": {"64x48": 6},
        "rates": {},
        "codecs": {},
    }
    manifest = Manifest("", tuple(shards), ["walk", "run"], totals, {"by": "test", "options": {"crf": -1}})
    return {"manifest.json": manifest.to_json(), **files}


def _sidecar(frames: int) -> dict[str, Any]:
    return {
        "path": "a/b.mp4", "label": 0, "class": "walk", "width": 64, "height": 48, "fps": 12.0, "frames": frames,
        "decoder": "auto", "states": [[0.5, float(row)] for row in range(frames)], "values": {"speed": 2.0},
    }  # fmt: skip


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def damage(seed: int) -> Damage:
    """The data set of `healthy_files` with random damage."""
    draw = random.Random(seed)
    files = dict(healthy_files())
    kind = draw.choice(list(KINDS))
    for _ in range(draw.choice((1, 1, 2))):
        KINDS[kind](draw, files)
    return Damage(kind, files, kind in ("video", "sidecar", "fields"))


def _members(shard: bytes, ending: tuple[str, ...] = (), others: bool = False) -> list[tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(shard)) as tar:
        return [member for member in tar if not ending or member.name.endswith(ending) != others]


def _damage_video(draw: random.Random, files: dict[str, bytes]) -> None:
    """Bits flipped or a run of bytes overwritten in the videos of the first shard; the second shard stays whole."""
    name = sorted(files)[1]
    shard = bytearray(files[name])
    member = draw.choice(_members(bytes(shard), (".json",), others=True))
    begin, size = member.offset_data, member.size
    how = draw.randrange(4)
    if how == 0:
        for _ in range(draw.choice((1, 1, 2, 8, 64))):
            shard[begin + draw.randrange(size)] ^= 1 << draw.randrange(8)
    elif how == 1:
        for _ in range(draw.choice((1, 4))):  # in the header, where lengths and counts are
            shard[begin + draw.randrange(min(size, 256))] = draw.choice((0, 1, 0x7F, 0x80, 0xFF))
    elif how == 2:
        at = begin + draw.randrange(max(size - 8, 1))
        shard[at : at + 4] = struct.pack(">I", draw.choice((0, 1, 2**31 - 1, 2**31, 2**32 - 1)))
    else:
        first = begin + draw.randrange(size)
        shard[first : begin + size] = bytes(begin + size - first)  # a hole to the end
    files[name] = bytes(shard)


def _damage_sidecar(draw: random.Random, files: dict[str, bytes]) -> None:
    """Bits flipped in a sidecar of the first shard."""
    name = sorted(files)[1]
    shard = bytearray(files[name])
    member = draw.choice(_members(bytes(shard), (".json",)))
    for _ in range(draw.choice((1, 2, 16))):
        shard[member.offset_data + draw.randrange(member.size)] ^= 1 << draw.randrange(8)
    files[name] = bytes(shard)


def _damage_fields(draw: random.Random, files: dict[str, bytes]) -> None:
    """Hostile values in sidecars of the first shard, which is written anew."""
    name = sorted(files)[1]
    file, victim = io.BytesIO(), draw.randrange(3)
    with tarfile.open(fileobj=file, mode="w") as tar:
        for number, member in enumerate(_members(files[name])):
            content = files[name][member.offset_data : member.offset_data + member.size]
            if member.name.endswith(".json") and number // 2 == victim:
                content = _with_hostile_value(draw, content)
            _add(tar, member.name, content)
    _replace_shard(files, name, file.getvalue())


def _with_hostile_value(draw: random.Random, sidecar: bytes) -> bytes:
    if draw.random() < 0.1:
        return draw.choice(HOSTILE_JSON).encode()
    try:
        fields = {key: json.dumps(value) for key, value in json.loads(sidecar).items()}
    except (ValueError, RecursionError, AttributeError):
        return sidecar
    for _ in range(draw.choice((1, 1, 3))):
        fields[draw.choice(SIDECAR_FIELDS)] = draw.choice(HOSTILE_JSON)
    return ("{" + ", ".join(f'"{key}": {value}' for key, value in fields.items()) + "}").encode()


def _damage_header(draw: random.Random, files: dict[str, bytes]) -> None:
    """A field of a tar header, with a valid checksum in most cases."""
    name = draw.choice(sorted(files)[1:])
    shard = bytearray(files[name])
    begin = draw.choice(_header_offsets(bytes(shard)))
    how = draw.randrange(5)
    if how == 0:
        shard[begin + 124 : begin + 136] = draw.choice(SIZE_FIELDS)
    elif how == 1:
        shard[begin + 156] = draw.choice(TYPES)
    elif how == 2:
        shard[begin + 124 : begin + 136] = draw.choice(SIZE_FIELDS)
        shard[begin + 156] = draw.choice(TYPES)
    elif how == 3:
        shard[begin + draw.randrange(BLOCK)] ^= 1 << draw.randrange(8)
    else:
        at = begin + draw.choice((0, 157, 257, 265, 297, 345, 386, 483))
        shard[at : at + draw.randrange(1, 24)] = draw.randbytes(draw.randrange(1, 24))
        del shard[len(files[name]) :]
        shard.extend(bytes(len(files[name]) - len(shard)))
    if draw.random() < 0.85:
        header = shard[begin : begin + BLOCK]
        header[148:156] = b" " * 8
        shard[begin + 148 : begin + 156] = b"%06o\0 " % sum(header)
    files[name] = bytes(shard)


def _header_offsets(shard: bytes) -> list[int]:
    """Where headers begin, including those of extended headers."""
    return [at for at in range(0, len(shard), BLOCK) if shard[at + 257 : at + 262] == b"ustar"] or [0]


def _damage_extended(draw: random.Random, files: dict[str, bytes]) -> None:
    """An extended header (pax or GNU) before the first member, with hostile records."""
    name = draw.choice(sorted(files)[1:])
    keys = (b"size", b"path", b"GNU.sparse.size", b"GNU.sparse.map", b"GNU.sparse.major", b"GNU.sparse.numblocks")
    keys += (b"hdrcharset", b"mtime", b"linkpath", b"GNU.sparse.name", b"GNU.sparse.realsize")
    values = (b"-1", b"1e9", b"9" * 30, b"nan", b"0,-5,3", b"\xff\xfe", b"BINARY", b"../../etc/passwd", b"", b"1")
    records = b""
    for _ in range(draw.randrange(1, 4)):
        record = draw.choice(keys) + b"=" + draw.choice(values) + b"\n"
        length = draw.choice((len(record) + 3, len(record) + 3, 0, -1, 99, 10**9))
        records += b"%d " % length + record
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        info = tarfile.TarInfo("pax")
        info.type = draw.choice((b"x", b"g", b"L", b"K", b"X", b"S"))
        info.size = len(records)
        tar.addfile(info, io.BytesIO(records))
        begin = file.tell()
    _replace_shard(files, name, file.getvalue()[:begin] + files[name])


def _damage_blocks(draw: random.Random, files: dict[str, bytes]) -> None:
    """Blocks of a shard cut off, left out, repeated or zeroed; the manifest knows the new size in most cases."""
    name = draw.choice(sorted(files)[1:])
    shard = files[name]
    if len(shard) < BLOCK:
        return
    first = BLOCK * draw.randrange(len(shard) // BLOCK)
    last = first + BLOCK * draw.randrange(1, 5)
    changed = draw.choice((
        shard[: draw.randrange(len(shard))],
        shard[:first] + shard[last:],
        shard[:last] + shard[first:],
        shard[:first] + bytes(last - first) + shard[last:],
        b"",
    ))  # fmt: skip
    if draw.random() < 0.8:
        _replace_shard(files, name, changed)
    else:
        files[name] = changed


def _damage_manifest(draw: random.Random, files: dict[str, bytes]) -> None:
    """Bits flipped, the end cut off, or one value replaced."""
    text = files["manifest.json"]
    how = draw.randrange(3)
    if how == 0:
        changed = bytearray(text)
        for _ in range(draw.choice((1, 3))):
            changed[draw.randrange(len(text))] ^= 1 << draw.randrange(8)
        files["manifest.json"] = bytes(changed)
    elif how == 1:
        files["manifest.json"] = text[: draw.randrange(len(text))]
    else:
        try:
            content = json.loads(text)
            places = list(_places(content))
        except (ValueError, RecursionError):  # what an earlier damage made of it
            return
        parent, key = draw.choice(places) if places else ([0], 0)
        parent[key] = "HOSTILE"
        files["manifest.json"] = json.dumps(content).replace('"HOSTILE"', draw.choice(HOSTILE_JSON)).encode()


def _places(content: Any) -> Any:
    """Every place of a value in nested dicts and lists."""
    pairs = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in pairs:
        yield content, key
        yield from _places(value)


KINDS: dict[str, Callable[[random.Random, dict[str, bytes]], None]] = {
    "video": _damage_video,
    "sidecar": _damage_sidecar,
    "fields": _damage_fields,
    "header": _damage_header,
    "extended": _damage_extended,
    "blocks": _damage_blocks,
    "manifest": _damage_manifest,
}


def _replace_shard(files: dict[str, bytes], name: str, content: bytes) -> None:
    """Store a shard and its new size in the manifest, if that can still be parsed."""
    files[name] = content
    with contextlib.suppress(ValueError, KeyError, TypeError):
        manifest = json.loads(files["manifest.json"])
        for shard in manifest["shards"]:
            if shard["name"] == name:
                shard["bytes"] = len(content)
        manifest.pop("bytes", None)
        files["manifest.json"] = json.dumps(manifest).encode()


def read_everything(folder: Path, verify: bool = True, decoder: Decoder = "auto") -> None:
    """Inspect, train on, evaluate and verify a data set; raises ValueError or OSError if it must not be read."""
    config = DataConfig(
        path=str(folder), frames=2, stride=2, crop=16, workers=0, max_bad_fraction=1.0, timeout=20,
        arrays={"states": "frames"}, decoder=decoder,
    )  # fmt: skip
    for line in describe(Manifest.load(folder)):
        printable("".join(line)).encode()  # as the command prints it
    next(iter(TrainLoader(config, 4, 0)))
    for batch in EvalLoader(config, 3, Views(segments=2)):
        assert len(batch.keys) == len(batch.labels) == len(batch.clips)
    for problem in verify_shards(Manifest.load(folder), decode=2) if verify else ():
        problem.encode()


class OverTimeError(BaseException):
    """A case took too long; nothing that is being tested may catch it."""


@contextlib.contextmanager
def limits(seconds: float, memory: int) -> Iterator[None]:
    """The block may take `seconds`, else OverTimeError, and `memory` bytes more than now, else MemoryError.

    A timer that runs already, such as that of the test, goes on afterwards.
    """

    def stop(*_: object) -> None:
        raise OverTimeError(f"more than {seconds:g} s")

    begun, data = time.monotonic(), resource.getrlimit(resource.RLIMIT_DATA)
    handler, timer = signal.signal(signal.SIGALRM, stop), signal.setitimer(signal.ITIMER_REAL, seconds)
    limit_memory(memory_in_use() + memory)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, data)
        left = max(timer[0] - (time.monotonic() - begun), 0.01) if timer[0] else 0.0
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, left)


def check_seed(seed: int, folder: Path) -> str:
    """Read the damaged data set of one seed: "read", or "refused" with a ValueError or OSError naming the folder.

    AssertionError if a harmless one is refused or the error does not say where it is; any other error passes through.
    """
    damaged = damage(seed)
    for name, content in damaged.files.items():
        (folder / name).write_bytes(content)
    problem = _find_problem(folder, seed % 4 == 0, "av" if seed % 2 else "auto")
    if problem:
        assert not damaged.harmless, f"seed {seed} ({damaged.what}) stopped a run: {problem}"
        assert str(folder) in problem, f"seed {seed} ({damaged.what}): the error does not name the file: {problem}"
    return "refused" if problem else "read"


def _find_problem(folder: Path, verify: bool, decoder: Decoder) -> str:
    try:
        read_everything(folder, verify, decoder)
    except (ValueError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return ""
