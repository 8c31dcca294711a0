"""One source -> the samples that go into a shard, or the reason why it is rejected.

Every video is decoded sequentially, which gives the reference frames. Then a few frames are read by random access, as
the loader will read them, and compared with the reference: if they differ, the video is rejected or, with --repair,
re-encoded. The sidecar records whether decord could be used as well.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from data.containers import identify
from data.decode import (
    HAS_DECORD,
    DecodeError,
    Decoder,
    Frames,
    VideoInfo,
    decode_frames,
    is_picture,
    open_video,
    probe_video,
    to_pixels,
)
from data.decoder_process import MEMORY
from data.isolation import decode_isolated
from data.loading.shards import ALLOWED, SIDECARS
from data.packing.companions import read_companions
from data.packing.sources import Source, read_source
from data.packing.transcode import TranscodeConfig, transcode_video

MIN_COMPLETE = 0.9  # of the frames that a container lists; edit lists may hide a few
PATIENCE = 600.0  # seconds for decord to read a few frames; `pack` has a limit of its own for a source
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
        video = read_source(Path(source.path))  # its size is part of the worker's memory limit
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
    except MemoryError:
        return Examined(rejected=f"out of memory: more than {MEMORY >> 30} GiB")
    except (ValueError, ArithmeticError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        return Examined(rejected=f"not decodable: {type(error).__name__}: {str(error)[:160]}")


def find_decoder(video: bytes) -> tuple[VideoInfo, Decoder]:
    """Properties of a video, and "auto" if decord reads the right frames too, else "av".

    DecodeError if PyAV's random access returns wrong frames. decord has a process of its own: it may crash.
    """
    reference = _Reference()
    info = probe_video(video, reference.add)
    if not reference.frames:
        return info, "auto"
    _check_complete(video, info.frames)
    if len(reference.sizes) > 1:
        sizes = len(reference.sizes)
        raise DecodeError("size changes", f"frames of {sizes} sizes in one video; --repair re-encodes it")
    problem = _find_wrong(partial(decode_frames, video, decoder="av"), reference)
    if problem:
        raise DecodeError("random access gives wrong frames", f"{problem}; --repair re-encodes it")
    if not HAS_DECORD or _find_wrong(partial(decode_isolated, video, decoder="decord", timeout=PATIENCE), reference):
        return info, "av"
    return info, "auto"


def _find_wrong(decode: Callable[[Sequence[int]], Frames], reference: "_Reference") -> str:
    """What is wrong with frames read with a stride, as for a clip, and with a single frame; "" if nothing is."""
    kept = sorted(reference.frames)
    before, at = ([key - 1 for key in reference.keys], list(reference.keys))
    for indices in (kept[::3], [kept[2 * len(kept) // 3]], before, at):
        if not indices:
            continue
        try:
            frames = decode(indices)
        except DecodeError as error:
            return str(error)
        wrong = [index for index, frame in zip(indices, frames, strict=True) if reference.differs(index, frame)]
        if wrong:
            return f"{len(wrong)} of {len(indices)} frames, the first of them frame {wrong[0]}"
    return ""


def _check_complete(video: bytes, frames: int) -> None:
    """Raise DecodeError if clearly fewer frames decode than an ISO file lists: it has a hole, or its end is missing."""
    if identify(video) != "mov":
        return  # in other containers a packet may be half a frame
    with open_video(video) as container:
        stream = container.streams.video[0]
        packets = container.demux(stream)
        listed = sum(  # edit lists discard some; the one at the end of a cut file is corrupt
            packet.size > 0 and not packet.is_discard and not packet.is_corrupt for packet in packets
        )
        listed += sum(entry.pos + entry.size > len(video) for entry in stream.index_entries)
    if frames < MIN_COMPLETE * listed - 1:
        raise DecodeError("damaged", f"only {frames} of {listed} frames decode; --repair keeps those")


class _Reference:
    """Every 2^k-th frame of a video, subsampled, and the frames at every 2^j-th key frame and before it.

    k and j grow with the length of the video. Key frames are where a decoder that seeks starts: with open groups of
    pictures, some start at another frame than they were asked for.
    """

    def __init__(self) -> None:
        self.frames: dict[int, Frames] = {}
        self.keys: dict[int, tuple[Frames, Frames]] = {}  # index of a key frame -> the frame before, the key frame
        self.sizes: set[tuple[int, int]] = set()
        self._step = self._key_step = 1
        self._keys_seen = 0
        self._last: av.VideoFrame | None = None
        self._converter = VideoReformatter()

    def add(self, index: int, frame: av.VideoFrame) -> None:
        self.sizes.add((frame.width, frame.height))
        if frame.key_frame and self._last is not None:
            self._add_key(index, self._last, frame)
        self._last = frame
        if index % self._step:
            return
        self.frames[index] = _points(to_pixels(frame, self._converter))
        if len(self.frames) > 2 * KEPT:
            self._step *= 2
            self.frames = {kept: pixels for kept, pixels in self.frames.items() if kept % self._step == 0}

    def _add_key(self, index: int, before: av.VideoFrame, frame: av.VideoFrame) -> None:
        if self._keys_seen % self._key_step == 0:
            self.keys[index] = _points(to_pixels(before, self._converter)), _points(to_pixels(frame, self._converter))
        self._keys_seen += 1
        if len(self.keys) > KEPT:
            self._key_step *= 2
            self.keys = dict(list(self.keys.items())[::2])

    def differs(self, index: int, frame: Frames) -> bool:
        points, found = self._expected(index).astype(np.int16), _points(frame).astype(np.int16)
        if points.shape != found.shape:
            return True
        distance = np.abs(points - found)
        return bool(distance.mean() > 2 or (distance > 24).mean() > 0.01)

    def _expected(self, index: int) -> Frames:
        if index in self.frames:
            return self.frames[index]
        return self.keys[index][1] if index in self.keys else self.keys[index + 1][0]


def _points(frame: Frames) -> Frames:
    """About 64 x 64 pixels of a frame."""
    height, width = frame.shape[:2]
    return frame[:: max(height // 64, 1), :: max(width // 64, 1)].copy()


def _untouched(task: Task, video: bytes) -> Packed:
    extension = Path(task.source.path).suffix.lower().lstrip(".")
    if extension not in ALLOWED or extension in SIDECARS:
        raise DecodeError("not a video", f"the extension {extension!r} is not supported")
    info, decoder = find_decoder(video)
    # Re-encoded videos get no companions: their frames are no longer the ones the rows belong to.
    meta = _describe(task, video, info, decoder) | read_companions(Path(task.source.path), info.frames)
    return Packed(task.source.key, extension, None, meta)


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
