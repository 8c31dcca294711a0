"""Videos that are legal but odd, or nearly legal: read the same way everywhere, or refused in words everywhere."""

import io
import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import av
import hostile
import numpy as np
import pytest
from conftest import encode, rotate
from loading import make_set, take
from PIL import Image

from data.containers import DecodeError
from data.decode import decode_frames, probe_video
from data.isolation import decode_isolated, stream_isolated
from data.loading.loader import DataConfig, TrainLoader
from data.packing.examine import find_decoder
from launch.exchange.features import read_video, show_windows
from launch.seeing.pairs import read_frames


def _lossless(width: int, height: int, pixels: str = "yuv444p", codec: str = "rawvideo") -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="avi") as output:
        stream = output.add_stream(codec, rate=12)
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        for index in range(6):
            picture = np.full((height, width, 3), 20 + 8 * index, np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            output.mux(stream.encode(frame.reformat(format=pixels)))
        output.mux(stream.encode())
    return file.getvalue()


def _sound() -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream = output.add_stream("aac", rate=44100)
        for index in range(5):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 44100, index * 1024
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return file.getvalue()


def _patched(kind: bytes, offset: int, form: str, *values: int) -> bytes:
    """The tests' video with values written into a box, `offset` bytes after its name."""
    video = encode()
    begin = video.index(kind) + 4 + offset
    return video[:begin] + struct.pack(form, *values) + video[begin + struct.calcsize(form) :]


def _turned(*matrix: int) -> bytes:
    return _patched(b"tkhd", 40, ">9i", *matrix)


def _png(*chunks: tuple[bytes, bytes]) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (20, 20)).save(file, "PNG")
    whole = file.getvalue()
    extra = b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )
    return whole[:33] + extra + whole[33:]


def _bomb() -> bytes:
    return b"a\0\0" + zlib.compress(bytes(100_000_000), 9)


LAST = 2**31 - 1
READ: dict[str, Callable[[], bytes]] = {
    "1 x 1": lambda: _lossless(1, 1),
    "1 x 4000": lambda: _lossless(1, 4000),
    "4000 x 1": lambda: _lossless(4000, 1),
    "grey of 16 bits": lambda: _lossless(32, 32, "gray16le", "ffv1"),
    "with transparency": lambda: _lossless(32, 32, "yuva420p", "ffv1"),
    "planar RGB of 16 bits": lambda: _lossless(32, 32, "gbrp16le", "ffv1"),
    "turned by 90 degrees": lambda: rotate(encode(), 90),
    "turned by 45 degrees": lambda: _turned(46341, 46341, 0, -46341, 46341, 0, 0, 0, 1 << 30),
    "mirrored": lambda: _turned(-65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30),
    "a matrix of zeros": lambda: _turned(*[0] * 9),
    "a matrix of the largest numbers": lambda: _turned(*[LAST] * 9),
    "a negative start in the edit list": lambda: _patched(b"elst", 8, ">Ii", 1000, -5),
    "an edit list that claims 2^32 entries": lambda: _patched(b"elst", 4, ">I", 2**32 - 1),
    "no time scale": lambda: _patched(b"mdhd", 12, ">I", 0),
    "no time between frames": lambda: _patched(b"stts", 12, ">I", 0),
    "68 years between frames": lambda: _patched(b"stts", 12, ">I", LAST),
    "a header of 65535 x 65535": lambda: _patched(b"avc1", 24, ">HH", 65535, 65535),
    "a GIF without delays": lambda: hostile.gif(8, 8, 5).replace(b"\x21\xf9\x04\0\x04\0", b"\x21\xf9\x04\0\0\0"),
    "two videos in a row": lambda: encode() + encode(width=96, height=64),
}  # fmt: skip
REFUSED: dict[str, Callable[[], bytes]] = {
    "sound alone": _sound,
    "only an empty edit": lambda: _patched(b"elst", 8, ">Ii", 1000, -1),
    "an edit beyond the end": lambda: _patched(b"elst", 8, ">Ii", LAST, LAST),
    "2^32 sizes": lambda: _patched(b"stsz", 8, ">I", 2**32 - 1),
    "frames beyond the end": lambda: _patched(b"stco", 8, ">I", 2**32 - 1),
    "no codec": lambda: _patched(b"stsd", 4, ">I", 0),
    "a codec nobody knows": lambda: encode().replace(b"avc1", b"zzzz"),
    "a GIF of 65535 x 65535": lambda: b"GIF89a\xff\xff\xff\xff" + hostile.gif(8, 8, 3)[10:],
    "a PNG with a text bomb": lambda: _png((b"zTXt", _bomb())),
    "a PNG with a profile bomb": lambda: _png((b"iCCP", _bomb())),
    "nothing but a first box": lambda: hostile.box(b"ftyp", b"isom\0\0\0\0"),
    "noise after the magic of mpegts": lambda: (b"\x47" + os.urandom(187)) * 50,
    "noise after the magic of ogg": lambda: b"OggS" + os.urandom(5000),
    "noise after the magic of flv": lambda: b"FLV\x01\x05\0\0\0\x09" + os.urandom(5000),
    "noise after the magic of mpeg": lambda: b"\0\0\1\xb3" + os.urandom(5000),
}


@pytest.mark.parametrize("name", READ)
def test_odd_videos_are_read_the_same_way_everywhere(name: str, tmp_path: Path) -> None:
    video = READ[name]()
    info, _ = find_decoder(video)
    frames = decode_frames(video, range(info.frames))
    assert frames.shape == (info.frames, info.height, info.width, 3)
    assert np.array_equal(decode_isolated(video, [info.frames - 1]), frames[-1:])
    assert all(np.array_equal(pixels, frames[index]) for index, pixels in stream_isolated(video, range(info.frames)))
    path = tmp_path / "odd.mp4"
    path.write_bytes(video)
    watched = read_video(path)
    assert next(show_windows(watched, np.zeros((1, 4), np.int64), 16)).shape == (4, 16, 16, 3)
    assert read_frames(path, 16).shape[1:] == (16, 16, 3)


@pytest.mark.parametrize("name", REFUSED)
def test_broken_videos_are_refused_in_words_everywhere(name: str, tmp_path: Path) -> None:
    video = REFUSED[name]()
    path = tmp_path / "odd.mp4"
    path.write_bytes(video)
    for action in (find_decoder, probe_video, lambda content: decode_isolated(content, [0])):
        with pytest.raises(DecodeError):
            action(video)
    for named in (read_video, lambda path: read_frames(path, 16)):
        with pytest.raises(ValueError, match=r"\w"):
            named(path)
    meta = json.dumps({"frames": 24, "fps": 12.0}).encode()
    make_set(tmp_path, [{"mp4": video, "json": meta}, {"mp4": encode(), "json": meta}])
    (batch,) = take(TrainLoader(DataConfig(path=str(tmp_path), frames=4, crop=16, workers=0), 2, 0), 1)
    assert list(batch.skipped.values()) == [["sample000"]]
