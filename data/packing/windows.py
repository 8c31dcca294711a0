"""Make a labelled set from unlabelled videos: short windows, labelled by playback direction or by source video.

A probe trained on it shows how much of the motion, or of the appearance, an encoder captures, without any annotation.
T frames, H W pixels.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from data.containers import DecodeError
from data.generated.videos import encode_clip
from data.isolation import decode_isolated, probe_isolated
from data.packing.sources import list_sources, read_source

Label = Literal["direction", "source"]
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WindowConfig:
    """Which windows are cut, and how they are encoded."""

    frames: int = 16  # per window
    stride: int = 1  # every how many frames of the video one is taken
    hop: int = 8  # frames of the video from the start of one window to the next
    short_side: int = 64  # pixels
    held_out: float = 0.3  # fraction at the end of each video that becomes the test set; the sets share no frame
    fps: int = 8  # frame rate of the files; frames are not resampled
    crf: int = 20  # H.264 quality, 0 (lossless) to 51

    def __post_init__(self) -> None:
        if min(self.frames, self.stride, self.hop, self.short_side, self.fps) < 1:
            raise ValueError(f"windows: frames, stride, hop, short_side and fps must be at least 1, got {self}")
        if not 0 < self.held_out < 1:
            raise ValueError(f"windows: held_out must lie in (0, 1), got {self.held_out}")


def write_windows(videos: str, output: Path, label: Label, config: WindowConfig) -> dict[str, int]:
    """Write output/train/<label>/*.mp4 and output/test/<label>/*.mp4; returns the number of files in each set.

    `direction`: each window is written twice, to the folders forward and backward. `source`: the label is the video's
    key; a video too short for windows in both sets is left out, which is logged. Raises ValueError if all videos are
    too short, or if output/train or output/test is not empty.
    """
    counts, short, unreadable = {"train": 0, "test": 0}, [], []
    for folder in (Path(output) / subset for subset in counts):
        if folder.is_dir() and any(folder.iterdir()):
            raise ValueError(f"{folder} must be empty, or older windows would be mixed in: delete it, or use another")
    for source in list_sources(videos).sources:
        try:
            content = read_source(Path(source.path))
            found = split_starts(probe_isolated(content).frames, config)
        except DecodeError as error:
            unreadable.append(f"{source.name} ({error})")
            continue
        if label == "source" and not all(found.values()):
            short.append(source.key)
            continue
        for subset, starts in found.items():
            for start in starts:
                frames = read_window(content, start, config)
                name = f"{source.key}-{start:06d}.mp4"
                ways = {"forward": frames, "backward": frames[::-1]} if label == "direction" else {source.key: frames}
                for way, shown in ways.items():
                    path = Path(output) / subset / way / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    encode_clip(np.ascontiguousarray(shown), path, config.fps, config.crf)
                    counts[subset] += 1
    if unreadable:
        logger.warning("%d videos cannot be read and are left out: %s", len(unreadable), ", ".join(unreadable))
    if short:
        logger.warning(
            "%d videos are too short for windows in both sets and left out: %s", len(short), ", ".join(short)
        )
    if not min(counts.values()):
        raise ValueError(
            f"{videos}: no video has the {span(config)} frames that a window needs in both its first "
            f"{1 - config.held_out:.0%} and its last {config.held_out:.0%}; lower "
            "stride or frames, or use longer videos"
        )
    return counts


def span(config: WindowConfig) -> int:
    """Length of a window in frames of the video, from its first frame to its last."""
    return (config.frames - 1) * config.stride + 1


def split_starts(frames: int, config: WindowConfig) -> dict[str, range]:
    """Start frames of the windows in a video of `frames` frames, for each set."""
    border = round(frames * (1 - config.held_out))
    return {
        "train": range(0, border - span(config) + 1, config.hop),
        "test": range(border, frames - span(config) + 1, config.hop),
    }


def read_window(content: bytes, start: int, config: WindowConfig) -> npt.NDArray[np.uint8]:
    """The window that starts at frame `start`, resized to `short_side`: uint8 [T, H, W, 3] with even H and W."""
    indices = range(start, start + span(config), config.stride)
    frames = decode_isolated(content, list(indices))
    height, width = frames.shape[1:3]
    scale = config.short_side / min(height, width)
    size = (round(width * scale / 2) * 2, round(height * scale / 2) * 2)
    return np.stack([np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BILINEAR)) for frame in frames])
