"""Video bytes -> frames, behind one small interface: PyAV, or decord as a choice (docs/security.md says why).

These functions decode in this process, where a broken video may crash it; data/isolation.py has the same functions
behind a process boundary. No decoder sees a path or URL: the bytes are in memory, their container is on the allow-list
of data/containers.py, and FFmpeg is told which one it is and may open nothing else.
Both decoders return frames [T, H, W, C] uint8 in display order, with the file's rotation applied. Frame i is the i-th
frame that actually decodes, 0-based. A reader lives for one call and uses one thread: readers kept across a fork hang,
and other workers need the other cores. Pictures (JPEG, PNG) are videos of one frame.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from data.containers import DecodeError as DecodeError
from data.containers import identify, is_safe_to_guess

try:
    import decord
except ImportError:  # no wheels for this platform: PyAV decodes everything
    decord = None

HAS_DECORD = decord is not None
Frames = NDArray[np.uint8]
Decoder = Literal["auto", "decord", "av"]  # auto: decord, and PyAV for what decord cannot decode

MAX_PIXELS = 1 << 26  # per frame; 8K has half as many
PICTURES = ("jpeg", "png")
MOV_NAMES = "mov,mp4,m4a,3gp,3g2,mj2"  # FFmpeg's name for its one demuxer of ISO files


@dataclass(frozen=True)
class VideoInfo:
    """Properties of a video, measured by decoding all of it."""

    width: int  # after rotation
    height: int
    rotation: int  # degrees clockwise that were applied: 0, 90, 180, 270
    fps: float
    frames: int  # number of frames that actually decode
    duration: float  # seconds
    codec: str
    times: tuple[float, ...] | None = None  # seconds of each frame if the frame rate varies, else None


def decode_frames(video: bytes, indices: Sequence[int], decoder: Decoder = "av") -> Frames:
    """Frames [T, H, W, C] uint8 at `indices` (any order, repeats allowed); DecodeError if they cannot be decoded."""
    return np.stack(decode_each(video, indices, decoder))


def decode_each(video: bytes, indices: Sequence[int], decoder: Decoder = "av") -> list[Frames]:
    """`decode_frames` as a list of frames [H, W, C] of one size, which need not lie side by side in memory."""
    if not len(indices):
        raise ValueError("decode_frames needs at least one index")
    wanted, inverse = np.unique(np.asarray(indices, dtype=np.int64), return_inverse=True)
    if wanted[0] < 0:
        raise ValueError(f"frame indices must not be negative, got {wanted[0]}")
    frames = _decode_unique(video, wanted, decoder)
    return [frames[number] for number in inverse]


def probe_video(video: bytes, visit: Callable[[int, "av.VideoFrame"], None] | None = None) -> VideoInfo:
    """Decode the whole video once and report its properties; DecodeError if not a single frame decodes.

    `visit` is called with the index and the frame for every frame, except for pictures.
    """
    name = identify(video)
    if name in PICTURES:
        height, width = _open_picture(video).shape[:2]
        return VideoInfo(width, height, 0, 1.0, 1, 1.0, name)
    with open_video(video) as container:
        stream = find_stream(container)
        times: list[float | None] = []
        last: av.VideoFrame | None = None
        for frame in iterate_frames(container, stream):
            if visit is not None:
                visit(len(times), frame)
            times.append(frame.time)
            last = frame
        if last is None:
            raise DecodeError("no frames", "the stream opens but not one frame decodes")
        rotation = -90 * _quarter_turns(last) % 360
        width, height = (last.height, last.width) if rotation in (90, 270) else (last.width, last.height)
        rate = float(stream.average_rate or stream.guessed_rate or 25)
        fps, offsets = _timing(times, rate)
        duration = len(times) / fps if offsets is None else offsets[-1] + 1 / fps
        codec = stream.codec_context.name
        return VideoInfo(width, height, rotation, fps, len(times), duration, codec, offsets)


def is_picture(content: bytes) -> bool:
    """Whether the first bytes are those of a JPEG or PNG file."""
    return content[:3] == b"\xff\xd8\xff" or content[:8] == b"\x89PNG\r\n\x1a\n"


def open_video(video: bytes) -> "av.container.InputContainer":
    """A container that reads from memory; the caller closes it (`with`)."""
    name = identify(video)
    if name in PICTURES:
        raise DecodeError("not a video", f"it is a picture ({name})")
    options = {"protocol_whitelist": "none", "format_whitelist": name if name != "mov" else MOV_NAMES}
    if name == "mov":
        options |= {"enable_drefs": "0", "use_absolute_path": "0"}
    try:
        return av.open(
            io.BytesIO(video), "r", name, container_options=options, metadata_errors="replace", io_open=_open_nothing
        )
    except (av.FFmpegError, ValueError) as error:
        raise DecodeError("not a video", _reason(error)) from error


def _open_nothing(url: str, flags: int, options: dict[str, str]) -> NoReturn:
    raise PermissionError(f"the video refers to {url[:100]!r}, which is never opened")


def find_stream(container: "av.container.InputContainer") -> "av.VideoStream":
    """The first video stream, set to decode with one thread."""
    if not container.streams.video:
        raise DecodeError("no video stream")
    stream = container.streams.video[0]
    if stream.codec_context is None:
        raise DecodeError("unknown codec", "this build of PyAV has no decoder for it")
    if stream.codec_context.width * stream.codec_context.height > MAX_PIXELS:
        raise DecodeError("too large", _too_large(stream.codec_context.width, stream.codec_context.height))
    stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}  # the frame size may change within a stream
    stream.thread_type = "NONE"
    stream.codec_context.thread_count = 1
    return stream


def iterate_frames(container: "av.container.InputContainer", stream: "av.VideoStream") -> Iterator["av.VideoFrame"]:
    """Frames in display order, up to the end or the first decoding error; DecodeError if no frame came before it."""
    found = False
    try:
        for frame in container.decode(stream):
            found = True
            yield frame
    except av.FFmpegError as error:
        if not found:
            raise DecodeError("not decodable", _reason(error)) from error


def to_pixels(frame: "av.VideoFrame", converter: VideoReformatter) -> Frames:
    """One frame [H, W, C] uint8, with the file's rotation applied.

    `converter`: the same one for all frames of a video, because preparing a conversion takes longer than converting a
    small frame.
    """
    pixels = converter.reformat(frame, format="rgb24").to_ndarray().astype(np.uint8, copy=False)
    turns = _quarter_turns(frame)
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels


def _quarter_turns(frame: "av.VideoFrame") -> int:
    """Quarter turns counterclockwise nearest to what the file asks for, 0 to 3."""
    return round(frame.rotation / 90) % 4


def _decode_unique(video: bytes, wanted: NDArray[np.int64], decoder: Decoder) -> Sequence[Frames]:
    name = identify(video)
    if name in PICTURES:
        if wanted[-1] > 0:
            raise DecodeError("too few frames", f"a picture has one frame, frame {wanted[-1]} was requested")
        return [_open_picture(video)]
    guessed = is_safe_to_guess(video, name)
    if decoder == "decord" and not guessed:
        raise DecodeError("not for decord", f"decord guesses formats, which is not safe for this {name} file; use PyAV")
    if decoder == "decord" or (decoder == "auto" and decord is not None and guessed):
        try:
            return _decode_decord(video, wanted)
        except DecodeError:
            if decoder == "decord":
                raise
    return _decode_av(video, wanted)


def _decode_decord(video: bytes, wanted: NDArray[np.int64]) -> list[Frames]:
    if decord is None:
        raise DecodeError("decord is not installed")
    try:
        decord.logging.set_level(decord.logging.QUIET)
        reader = decord.VideoReader(io.BytesIO(video), ctx=decord.cpu(0), num_threads=1)
        if wanted[-1] >= len(reader):
            raise DecodeError("too few frames", f"frame {wanted[-1]} was requested, decord finds {len(reader)} frames")
        frames: Frames = reader.get_batch(wanted.tolist()).asnumpy()
    except (decord.DECORDError, RuntimeError, IndexError) as error:
        raise DecodeError("not decodable", _reason(error)) from error
    if frames.ndim != 4 or frames.shape[0] != len(wanted) or frames.shape[3] != 3:
        raise DecodeError("not decodable", f"decord returned an array of shape {frames.shape}")
    return list(frames)


def _decode_av(video: bytes, wanted: NDArray[np.int64]) -> list[Frames]:
    with open_video(video) as container:
        stream = find_stream(container)
        stamps = _packet_stamps(container, stream)
        if stamps is not None and wanted[-1] < len(stamps):
            frames = _decode_by_stamp(container, stream, [stamps[index] for index in wanted])
            if frames is not None:
                return frames
    return _decode_in_order(video, wanted)


def _packet_stamps(container: "av.container.InputContainer", stream: "av.VideoStream") -> list[int] | None:
    """Time stamp of every frame in display order, from the packets alone; None if they are missing or not unique."""
    stamps: list[int] = []
    try:
        for packet in container.demux(stream):
            if packet.size == 0 or packet.is_discard:
                continue
            if packet.pts is None:
                return None
            stamps.append(packet.pts)
    except av.FFmpegError:
        return None  # decoding in order shows how far the file is readable
    return sorted(stamps) if len(set(stamps)) == len(stamps) else None


def _decode_by_stamp(
    container: "av.container.InputContainer", stream: "av.VideoStream", stamps: list[int]
) -> list[Frames] | None:
    """Seek to the key frame before the first stamp and decode up to the last; None if a stamp does not appear."""
    found: dict[int, Frames] = {}
    missing = set(stamps)
    converter = VideoReformatter()
    try:
        container.seek(stamps[0], stream=stream)
        for frame in container.decode(stream):
            if frame.pts in missing:
                found[frame.pts] = to_pixels(frame, converter)
                missing.remove(frame.pts)
            if not missing or (frame.pts is not None and frame.pts > stamps[-1]):
                break
    except av.FFmpegError:
        return None
    return None if missing else _of_one_size([found[stamp] for stamp in stamps])


def _decode_in_order(video: bytes, wanted: NDArray[np.int64]) -> list[Frames]:
    """Fallback for streams without usable time stamps: count frames from the start."""
    requested = set(wanted.tolist())
    frames: list[Frames] = []
    count, converter = 0, VideoReformatter()
    with open_video(video) as container:
        for frame in iterate_frames(container, find_stream(container)):
            if count in requested:
                frames.append(to_pixels(frame, converter))
            count += 1
            if len(frames) == len(requested):
                return _of_one_size(frames)
    if not count:
        raise DecodeError("no frames", "the stream opens but not one frame decodes")
    raise DecodeError("too few frames", f"frame {wanted[-1]} was requested, {count} frames decode")


def _of_one_size(frames: list[Frames]) -> list[Frames]:
    sizes = {frame.shape for frame in frames}
    if len(sizes) > 1:
        raise DecodeError("size changes", f"frames of sizes {sorted(sizes)} in one video")
    return frames


def _open_picture(content: bytes) -> Frames:
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG", "PNG")) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise DecodeError("too large", _too_large(picture.width, picture.height))
            return np.array(ImageOps.exif_transpose(picture).convert("RGB"))
    except DecodeError:
        raise
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DecodeError("not a picture", _reason(error)) from error


def _timing(times: Sequence[float | None], rate: float) -> tuple[float, tuple[float, ...] | None]:
    """Average frame rate, and the offset of every frame in seconds if frames are not evenly spaced."""
    known = [time for time in times if time is not None]
    if len(known) != len(times) or len(known) < 2 or known[-1] <= known[0]:
        return rate, None
    offsets = [time - known[0] for time in known]
    fps = (len(offsets) - 1) / offsets[-1]
    if max(abs(offset - index / fps) for index, offset in enumerate(offsets)) * fps < 0.3:
        return round(fps, 6), None
    return round(fps, 6), tuple(round(offset, 4) for offset in offsets)


def _too_large(width: int, height: int) -> str:
    return f"frames of {width}x{height}, more than {MAX_PIXELS:,} pixels"


def _reason(error: BaseException) -> str:
    """One line of an error, without the decoder's source location and memory addresses."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    line = str(text).strip().splitlines()[0] if str(text).strip() else type(error).__name__
    return line.split("Check failed: ")[-1][:160]
