"""Re-encode a video as H.264: smaller, at another frame rate, cut into clips, or to remove quirks of its container.

Frames are resampled by time stamp onto an even grid, so variable frame rates become constant; rotation is applied and
audio dropped. One thread and no creation time: equal input gives equal bytes.
"""

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter

from data.decode import DecodeError, find_stream, iterate_frames, open_video, to_pixels


@dataclass(frozen=True)
class TranscodeConfig:
    """How videos are re-encoded."""

    short_side: int = 0  # pixels; 0: keep. Videos are never enlarged
    fps: float = 0.0  # 0: keep
    crf: int = 20  # H.264 quality, 0 (lossless) to 51
    fast_decode: bool = False  # x264's tune fastdecode: larger files that decode faster
    split: float = 0.0  # seconds per clip; 0: do not split

    def __post_init__(self) -> None:
        if self.short_side < 0 or 0 < self.short_side < 16:
            raise ValueError(f"short_side must be 0 (keep) or at least 16 pixels, got {self.short_side}")
        if self.fps < 0 or self.split < 0 or not 0 <= self.crf <= 51:
            found = f"fps {self.fps}, split {self.split}, crf {self.crf}"
            raise ValueError(f"need fps >= 0, split >= 0 and crf in 0 ... 51, got {found}")


def transcode_video(video: bytes, config: TranscodeConfig, start: float = 0.0, end: float = 0.0) -> Iterator[bytes]:
    """Re-encoded mp4 files of the part [start, end) in seconds (end 0: to the end), one for each clip.

    The last clip may be shorter than the others; if it has less than half their length, it is dropped.
    """
    with open_video(video) as container:
        stream = find_stream(container)
        own = float(stream.average_rate or stream.guessed_rate or 25)
        rate = Fraction(config.fps or own).limit_denominator(1001)
        if rate <= 0:
            raise DecodeError("no frame rate", f"{own:g} frames per second; give one to re-encode with (--fps)")
        length = max(round(config.split * rate), 1) if config.split else 0
        clip: _Encoder | None = None
        whole = 0
        for frame in _on_grid(iterate_frames(container, stream), rate, own, start, end or math.inf):
            if clip is None:
                clip = _Encoder(frame, config, rate)
            clip.add(frame)
            if clip.frames == length:
                yield clip.finish()
                clip, whole = None, whole + 1
        if clip is not None and (not whole or 2 * clip.frames >= length):
            yield clip.finish()
        elif clip is None and not whole:
            raise DecodeError("no frames in the requested part", f"no frame between {start:g} s and {end:g} s")


def _on_grid(
    frames: Iterator[av.VideoFrame], rate: Fraction, own: float, start: float, end: float
) -> Iterator[av.VideoFrame]:
    """The frame shown at each time start + k / rate."""
    step, first = float(1 / rate), None
    shown: av.VideoFrame | None = None
    moment, number, time = start, 0, 0.0
    tolerance = 0.25 * min(step, 1 / own)
    for index, frame in enumerate(frames):
        stamp = frame.time if frame.time is not None else index / own
        first = stamp if first is None else first
        time = stamp - first
        while shown is not None and moment < min(time - tolerance, end - tolerance):
            yield shown
            number += 1
            moment = start + number * step
        if time >= end:
            return
        shown = frame
    while shown is not None and moment < min(time + 1 / own, end) - tolerance:
        yield shown
        number += 1
        moment = start + number * step


class _Encoder:
    """An encoder that writes one mp4 file."""

    def __init__(self, frame: av.VideoFrame, config: TranscodeConfig, rate: Fraction) -> None:
        self.frames = 0
        self.turned = frame.rotation % 360 != 0
        height, width = (frame.width, frame.height) if frame.rotation % 180 else (frame.height, frame.width)
        short = min(height, width)
        scale = min(config.short_side / short, 1.0) if config.short_side else 1.0
        self.width, self.height = (max(2 * round(side * scale / 2), 2) for side in (width, height))
        self._file = io.BytesIO()
        self._container = av.open(self._file, "w", format="mp4")
        options = {"crf": str(config.crf), "preset": "medium", "threads": "1"}
        if config.fast_decode:
            options["tune"] = "fastdecode"
        stream: Any = self._container.add_stream("libx264", rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = self.width, self.height, "yuv420p"
        stream.thread_count = 1
        stream.codec_context.color_range = ColorRange.MPEG
        if not self.turned:  # rotated frames are RGB and get the default colour matrix
            stream.codec_context.colorspace = frame.colorspace
        self._stream, self._step = stream, 1 / rate
        self._converter = VideoReformatter()

    def add(self, frame: av.VideoFrame) -> None:
        if self.turned:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(to_pixels(frame, self._converter)), format="rgb24")
        frame = frame.reformat(
            self.width, self.height, "yuv420p", interpolation=Interpolation.AREA, dst_color_range=ColorRange.MPEG
        )
        frame.pts, frame.time_base = self.frames, self._step
        frame.pict_type = av.video.frame.PictureType.NONE
        self._container.mux(self._stream.encode(frame))
        self.frames += 1

    def finish(self) -> bytes:
        self._container.mux(self._stream.encode())
        self._container.close()
        return self._file.getvalue()
