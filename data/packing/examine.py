"""One source -> the samples that go into a shard, or the reason why it is rejected.

Every video is decoded sequentially, which gives the reference frames. Then a few frames are read by random access, as
the loader will read them, and compared with the reference. If decord is wrong and PyAV right, the sidecar records it;
if both are wrong, the video is rejected or, with --repair, re-encoded.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import av
import numpy as np

from data.decode import (
    HAS_DECORD,
    DecodeError,
    Decoder,
    Frames,
    VideoInfo,
    decode_frames,
    is_picture,
    probe_video,
    to_pixels,
)
from data.loading.shards import ALLOWED, SIDECARS
from data.packing.sources import Source
from data.packing.transcode import TranscodeConfig, transcode_video

COMPANIONS = ("actions", "states", "values")  # fields that VIDEO.json next to a video may add to its sidecar
KEPT = 16  # reference frames per video: at least this many if it has them, at most twice as many


@dataclass(frozen=True)
class Task:
    """How to process one source."""

    source: Source
    label: int | None
    transcode: TranscodeConfig | None  # None: keep the bytes
    repair: bool  # re-encode videos that random access reads wrongly


@dataclass(frozen=True)
class Packed:
    """One sample, ready to be written."""

    key: str
    extension: str
    content: bytes | None  # None: the unchanged bytes of the source
    meta: dict[str, Any]


@dataclass(frozen=True)
class Examined:
    """The samples of one source, or why it was rejected."""

    samples: tuple[Packed, ...] = ()
    rejected: str = ""


def examine_source(task: Task) -> Examined:
    """Read, check and, if requested, re-encode one source; problems of the file are returned as a rejection."""
    source = task.source
    try:
        video = Path(source.path).read_bytes()
        if is_picture(video):
            return Examined((_untouched(task, video),))
        settings = task.transcode
        if settings is None and not (source.start or source.end):
            try:
                return Examined((_untouched(task, video),))
            except DecodeError:
                if not task.repair:
                    raise
        return Examined(tuple(_reencoded(task, video, settings or TranscodeConfig())))
    except DecodeError as error:
        return Examined(rejected=str(error))
    except OSError as error:
        return Examined(rejected=f"cannot be read: {error.strerror or error}")


def find_decoder(video: bytes) -> tuple[VideoInfo, Decoder]:
    """Properties of a video, and the decoder whose random access returns the right frames; DecodeError if none does."""
    reference = _Reference()
    info = probe_video(video, reference.add)
    if not reference.frames:
        return info, "auto"
    if len(reference.sizes) > 1:
        sizes = len(reference.sizes)
        raise DecodeError("size changes", f"frames of {sizes} sizes in one video; --repair re-encodes it")
    candidates: tuple[Decoder, ...] = ("decord", "av") if HAS_DECORD else ("av",)
    problem = ""
    for decoder in candidates:
        found = _find_wrong(video, reference, decoder)
        if not found:
            return info, "auto" if decoder == "decord" else "av"
        problem = problem or found
    raise DecodeError("random access gives wrong frames", f"{problem}; --repair re-encodes it")


def _find_wrong(video: bytes, reference: "_Reference", decoder: Decoder) -> str:
    """What is wrong with frames read with a stride, as for a clip, and with a single frame; "" if nothing is."""
    kept = sorted(reference.frames)
    for indices in (kept[::3], [kept[2 * len(kept) // 3]]):
        try:
            frames = decode_frames(video, indices, decoder)
        except DecodeError as error:
            return str(error)
        wrong = [index for index, frame in zip(indices, frames, strict=True) if reference.differs(index, frame)]
        if wrong:
            return f"{len(wrong)} of {len(indices)} frames, the first of them frame {wrong[0]}"
    return ""


class _Reference:
    """Every 2^k-th frame of a video, subsampled; k grows with the length of the video."""

    def __init__(self) -> None:
        self.frames: dict[int, Frames] = {}
        self.sizes: set[tuple[int, int]] = set()
        self._step = 1

    def add(self, index: int, frame: av.VideoFrame) -> None:
        self.sizes.add((frame.width, frame.height))
        if index % self._step:
            return
        self.frames[index] = _points(to_pixels(frame))
        if len(self.frames) > 2 * KEPT:
            self._step *= 2
            self.frames = {kept: pixels for kept, pixels in self.frames.items() if kept % self._step == 0}

    def differs(self, index: int, frame: Frames) -> bool:
        points, found = self.frames[index].astype(np.int16), _points(frame).astype(np.int16)
        if points.shape != found.shape:
            return True
        distance = np.abs(points - found)
        return bool(distance.mean() > 2 or (distance > 24).mean() > 0.01)


def _points(frame: Frames) -> Frames:
    """About 64 x 64 pixels of a frame."""
    height, width = frame.shape[:2]
    return frame[:: max(height // 64, 1), :: max(width // 64, 1)].copy()


def _untouched(task: Task, video: bytes) -> Packed:
    extension = Path(task.source.path).suffix.lower().lstrip(".")
    if extension not in ALLOWED or extension in SIDECARS:
        raise DecodeError("not a video", f"the extension {extension!r} is not supported")
    info, decoder = find_decoder(video)
    meta = _describe(task, video, info, decoder) | _read_companion(Path(task.source.path), info.frames)
    return Packed(task.source.key, extension, None, meta)


def _read_companion(path: Path, frames: int) -> dict[str, Any]:
    """actions, states and values from VIDEO.json next to a video that is packed unchanged; {} without such a file.

    Re-encoded videos get none, because the arrays would no longer match their frames.
    """
    companion = path.with_suffix(".json")
    if not companion.is_file():
        return {}
    try:
        content = json.loads(companion.read_bytes())
    except ValueError as error:
        raise DecodeError("malformed companion", f"{companion.name}: {error}") from error
    found = {name: content[name] for name in COMPANIONS if name in content} if isinstance(content, dict) else {}
    for name, missing in (("actions", 1), ("states", 0)):
        if name in found and (not isinstance(found[name], list) or len(found[name]) != frames - missing):
            raise DecodeError("malformed companion", f"{companion.name}: {name} needs {frames - missing} rows")
    return found


def _reencoded(task: Task, video: bytes, settings: TranscodeConfig) -> Iterator[Packed]:
    source = task.source
    for number, content in enumerate(transcode_video(video, settings, source.start, source.end)):
        info, decoder = find_decoder(content)
        key = f"{source.key}-{number:05d}" if settings.split else source.key
        start = source.start + number * settings.split
        part = replace(task, source=replace(source, start=start, end=start + info.duration))
        yield Packed(key, "mp4", content, _describe(part, content, info, decoder))


def _describe(task: Task, content: bytes, info: VideoInfo, decoder: Decoder) -> dict[str, Any]:
    """The sidecar, see docs/data.md."""
    source = task.source
    meta: dict[str, Any] = {
        "path": source.name,
        "label": task.label,
        "class": source.label,
        "width": info.width,
        "height": info.height,
        "rotation": info.rotation,
        "fps": info.fps,
        "frames": info.frames,
        "duration": round(info.duration, 3),
        "codec": info.codec,
        "decoder": decoder,
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    if source.start or source.end:
        meta["start"], meta["end"] = round(source.start, 3), round(source.end, 3)
    if info.times is not None:
        meta["times"] = list(info.times)
    return meta
