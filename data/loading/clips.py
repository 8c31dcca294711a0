"""Which frames make a clip: T indices into a video of F frames, chosen by stride or by time stamp.

By stride: frames s, s + stride, ... . By rate (`fps` > 0): at time t, the last frame shown at or before t, so a video
slower than the requested rate repeats frames and variable frame rates are handled. If the video is shorter than the
clip, the clip starts at frame 0 and repeats the last frame. Training draws the start uniformly; evaluation uses fixed
segments.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Timing:
    """When the frames of a video are shown."""

    frames: int
    fps: float
    times: Sequence[float] | None = None  # seconds of every frame if the frame rate varies

    def __post_init__(self) -> None:
        if self.frames < 1 or self.fps <= 0:
            raise ValueError(f"a video needs frames >= 1 and fps > 0, got {self.frames} and {self.fps}")
        if self.times is not None and len(self.times) != self.frames:
            raise ValueError(f"a video of {self.frames} frames has {len(self.times)} time stamps")

    def shown_at(self) -> NDArray[np.float64]:
        """Seconds at which each frame is shown, [F]; starts at 0 if the frame rate is constant."""
        if self.times is None:
            return np.arange(self.frames, dtype=np.float64) / self.fps
        return np.asarray(self.times, dtype=np.float64)

    def end(self) -> float:
        """End of the video in seconds, if the last frame is shown for the average frame duration."""
        last = (self.frames - 1) / self.fps if self.times is None else float(self.times[-1])
        return last + 1 / self.fps

    def frames_at(self, moments: NDArray[np.float64]) -> Indices:
        """The frames shown at `moments` [T], in seconds; times outside the video give its first or last frame."""
        tolerance = 1e-3 / self.fps  # time stamps are rounded to ticks of the container's time base
        indices = np.searchsorted(self.shown_at(), moments + tolerance, side="right") - 1
        return np.clip(indices, 0, self.frames - 1).astype(np.int64)


def choose_frames(timing: Timing, count: int, stride: int, fps: float, where: float) -> Indices:
    """`count` frame indices; `where` in [0, 1] is the start between the earliest (0) and the latest (1) possible."""
    if fps > 0:
        return _by_time(timing, count, fps, where)
    room = max(timing.frames - ((count - 1) * stride + 1), 0)
    start = min(int(where * (room + 1)), room)
    return np.minimum(start + stride * np.arange(count), timing.frames - 1)


def segment_centres(segments: int) -> list[float]:
    """Relative times of the fixed evaluation segments: the centres of `segments` equal parts of [0, 1]."""
    return [(segment + 0.5) / segments for segment in range(segments)]


def choose_published(
    timing: Timing, count: int, stride: int, fps: float, segments: int, draw: random.Random | None = None
) -> list[Indices]:
    """The frames of every segment as in V-JEPA's public evaluation: `count` indices each.

    A clip is spread over count * s frames, where s is the stride or the whole part of the video's rate (rounded up)
    over `fps`. It begins with its part of the video, or with `draw` at a random frame of the part. Where parts are not
    longer than a clip, clips overlap evenly.
    """
    step = max(1, int(math.ceil(timing.fps) // fps)) if fps > 0 else stride
    length, part = count * step, timing.frames // segments
    if part > length:
        starts = [segment * part + (int(draw.random() * (part - length)) if draw else 0) for segment in range(segments)]
        spread = np.minimum(np.linspace(0, length, count), length - 1)
    else:
        shift = (timing.frames - length) // (segments - 1) if timing.frames > length else 0
        starts, last = [segment * shift for segment in range(segments)], min(length, timing.frames) - 1
        spread = np.full(count, float(last))
        spread[: last // step] = np.linspace(0, last, last // step)
        spread = np.clip(spread, 0, max(last - 1, 0))
    return [start + spread.astype(np.int64) for start in starts]


def _by_time(timing: Timing, count: int, fps: float, where: float) -> Indices:
    room = max(timing.end() - (count - 1) / fps, 0.0)
    return timing.frames_at(min(where, 1 - 1e-9) * room + np.arange(count) / fps)
