"""Both decoders give the same frames, and say clearly what they cannot read."""

import io
from collections.abc import Callable

import av
import numpy as np
import pytest
from conftest import MakeVideo
from PIL import Image

from data.decode import HAS_DECORD, DecodeError, Decoder, decode_frames, probe_video

DECODERS: list[Decoder] = ["auto", "av", *(["decord"] if HAS_DECORD else [])]  # type: ignore[list-item]


@pytest.mark.parametrize("decoder", DECODERS)
def test_the_frames_asked_for_come_in_the_order_asked_for(
    make_video: MakeVideo, frame_number: Callable[[np.ndarray], int], decoder: Decoder
) -> None:
    for indices in ([0], [23], [3, 9, 15, 21], [20, 4, 4, 11], [7, 7, 7]):
        frames = decode_frames(make_video(), indices, decoder)
        assert frames.dtype == np.uint8
        assert frames.shape == (len(indices), 48, 64, 3)
        assert [frame_number(frame) for frame in frames] == indices


@pytest.mark.skipif(not HAS_DECORD, reason="decord has no wheels here")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"width": 66, "height": 50},
        {"codec": "libx265"},
        {"codec": "libx265", "container": "mov"},
        {"codec": "mpeg4", "container": "avi"},
        {"codec": "libvpx-vp9", "container": "webm"},
        {"container": "matroska"},
        {"stamps": [0, 1, 2, 7, 8, 20, 21, 22, 40, 41, 42, 43]},
    ],
)
def test_decord_and_pyav_agree(make_video: MakeVideo, options: dict[str, object]) -> None:
    video = make_video(frames=12, **options)
    one, other = (decode_frames(video, range(0, 12, 2), decoder) for decoder in ("decord", "av"))
    assert np.abs(one.astype(int) - other.astype(int)).max() <= 2


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation_is_applied_by_both(
    make_video: MakeVideo, rotate_video: Callable[[bytes, int], bytes], degrees: int
) -> None:
    video = rotate_video(make_video(width=64, height=128), degrees)
    upright = decode_frames(make_video(width=64, height=128), [0, 5])
    wanted = np.rot90(upright, -degrees // 90, axes=(1, 2))
    for decoder in DECODERS:
        found = decode_frames(video, [0, 5], decoder)
        assert found.shape == wanted.shape
        assert np.abs(found.astype(int) - wanted).max() <= 3, decoder
    info = probe_video(video)
    assert (info.rotation, info.height, info.width) == (degrees, *wanted.shape[1:3])


def test_rotated_frames_of_any_width_are_read(
    make_video: MakeVideo, rotate_video: Callable[[bytes, int], bytes]
) -> None:
    assert decode_frames(rotate_video(make_video(width=64, height=48), 90), [0, 3]).shape == (2, 64, 48, 3)


@pytest.mark.parametrize(
    ("codec", "pixels"), [("libx264", "yuv420p10le"), ("libx264", "yuv444p"), ("libsvtav1", "yuv420p")]
)
def test_unusual_videos_are_read(
    make_video: MakeVideo, frame_number: Callable[[np.ndarray], int], codec: str, pixels: str
) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec}")
    video = make_video(frames=10, width=128, height=96, codec=codec, pixels=pixels)
    frames = decode_frames(video, [2, 8])
    assert [frame_number(frame) for frame in frames] == [2, 8]


def test_probing_counts_what_decodes(make_video: MakeVideo) -> None:
    info = probe_video(make_video(frames=19, fps=10))
    assert (info.frames, info.fps, info.width, info.height, info.codec) == (19, 10.0, 64, 48, "h264")
    assert info.duration == pytest.approx(1.9)
    assert info.times is None


def test_probing_finds_variable_rates(make_video: MakeVideo) -> None:
    stamps = [0, 1, 2, 7, 8, 20, 21, 22, 40, 41, 42, 43]
    info = probe_video(make_video(frames=12, fps=12, stamps=stamps))
    assert info.times == pytest.approx([stamp / 12 for stamp in stamps], abs=1e-3)


def test_a_video_cut_short_is_counted_as_far_as_it_goes(make_video: MakeVideo) -> None:
    video = make_video(frames=24, container="matroska")
    found = probe_video(video[: len(video) * 2 // 3]).frames
    assert 4 < found < 24
    assert len(decode_frames(video[: len(video) * 2 // 3], [0, found - 1])) == 2


def test_pictures_are_videos_of_one_frame() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    assert np.array_equal(decode_frames(file.getvalue(), [0, 0])[1], pixels)
    assert probe_video(file.getvalue()).frames == 1
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    assert decode_frames(file.getvalue(), [0]).shape == (1, 20, 30, 3)
    with pytest.raises(DecodeError, match="too few frames"):
        decode_frames(file.getvalue(), [1])


def _sound() -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream = output.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return file.getvalue()


def test_broken_videos_give_a_reason(make_video: MakeVideo) -> None:
    video = make_video()
    broken = {
        "empty": b"",
        "one byte": b"\0",
        "text": b"this is no video at all\n" * 50,
        "sound only": _sound(),
        "half a file": video[: len(video) // 2],
        "no index": video[:100] + b"\0" * 400,
        "half a picture": b"\x89PNG\r\n\x1a\n" + b"\0" * 20,
    }
    for name, content in broken.items():
        for action in (lambda c: decode_frames(c, [0]), probe_video):
            with pytest.raises(DecodeError) as caught:
                action(content)
            assert 3 < len(caught.value.reason) < 60, name
            assert "\n" not in str(caught.value), name


def test_frames_beyond_the_end_are_an_error(make_video: MakeVideo) -> None:
    with pytest.raises(DecodeError, match=r"too few frames.*24"):
        decode_frames(make_video(), [3, 24])
