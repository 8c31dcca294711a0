"""Tiny videos for the tests: every frame can be told from its pixels."""

import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from data.loading.loader import DataConfig
from data.packing.pack import PackConfig, pack

MakeVideo = Callable[..., bytes]


def encode(
    frames: int = 24,
    width: int = 64,
    height: int = 48,
    fps: int = 12,
    codec: str = "libx264",
    container: str = "mp4",
    pixels: str = "yuv420p",
    offset: int = 0,
    stamps: list[int] | None = None,
) -> bytes:
    """A video whose frame i is grey of level 20 + 8 * (i + offset), with a red corner at the top left."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream: Any = output.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt, stream.thread_count = width, height, pixels, 1
        if codec.startswith("libx26"):
            stream.options = {"crf": "10", "g": "8", "x265-params": "log-level=none:pools=1"}
        else:
            stream.bit_rate = 2_000_000
        for index in range(frames):
            picture = np.full((height, width, 3), 20 + 8 * ((index + offset) % 28), np.uint8)
            picture[: height // 3, : width // 3] = (255, 0, 0)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if stamps is not None:
                frame.pts = stamps[index]
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return file.getvalue()


def rotate(video: bytes, degrees: int) -> bytes:
    """The same mp4 file, asking to be shown turned clockwise."""
    one = 0x10000
    matrix = {90: (0, one, 0, -one), 180: (-one, 0, 0, -one), 270: (0, -one, 0, one)}
    a, b, c, d = (matrix[degrees][0], matrix[degrees][1], matrix[degrees][2], matrix[degrees][3])
    if degrees != 180:
        c, d = matrix[degrees][3], 0
    begin = video.find(b"tkhd") + 4 + 4 + 20 + 16
    return video[:begin] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 0x40000000) + video[begin + 36 :]


def level(frame: np.ndarray) -> int:
    """The number of a frame, read from its lower right quarter."""
    height, width = frame.shape[:2]
    return round((float(frame[height // 2 :, width // 2 :].mean()) - 20) / 8)


@pytest.fixture(scope="session")
def make_video() -> MakeVideo:
    return encode


@pytest.fixture(scope="session")
def rotate_video() -> Callable[[bytes, int], bytes]:
    return rotate


@pytest.fixture(scope="session")
def frame_number() -> Callable[[np.ndarray], int]:
    return level


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 24 videos in three classes."""
    folder = tmp_path_factory.mktemp("videos")
    for number in range(24):
        name = ("jump", "run", "walk")[number % 3]
        (folder / name).mkdir(exist_ok=True)
        (folder / name / f"clip {number:02d}.mp4").write_bytes(encode(frames=16 + number % 5, offset=number))
    return folder


@pytest.fixture(scope="session")
def packed(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same videos in about eight shards."""
    folder = tmp_path_factory.mktemp("packed")
    pack(str(videos), str(folder), PackConfig(shard_mb=0.012, jobs=0))
    return folder


@pytest.fixture
def config(packed: Path) -> DataConfig:
    return DataConfig(path=str(packed), frames=4, stride=2, crop=32, workers=0, shuffle_shards=3, timeout=20)
