"""Which container a file is, by its first bytes: nothing off this list ever reaches a decoder.

FFmpeg guesses a format from the content, and some of the formats it knows (HLS, DASH, concat, SDP) are lists of other
files and addresses that it then opens. So the format is decided here, handed to the decoder by name, and files that
refer to others are refused, whatever they are called.
"""

import struct
from collections.abc import Iterator

MAX_BOXES = 100_000  # of an ISO file or a Matroska header; a file of nothing but boxes would take minutes to walk
PROBED = 1 << 20  # bytes in which FFmpeg looks for a format

TEXT_FORMATS = {  # what a text begins with -> what it is
    b"#extm3u": "an HLS playlist",
    b"ffconcat": "an ffconcat list",
    b"v=0": "an SDP session",
    b"[playlist]": "a PLS playlist",
    b"[reference]": "an ASF redirector",
    b"<asx": "an ASX playlist",
    b"<smil": "a SMIL playlist",
    b"<?wpl": "a WPL playlist",
    b"<mpd": "a DASH manifest",
    b"<smoothstreamingmedia": "a Smooth Streaming manifest",
    b"rtsptext": "a QuickTime redirector",
    b"smiltext": "a QuickTime redirector",
}
TEXT_MARKS = (b"#extm3u", b"ffconcat", b"c=in ", b"<mpd", b"<smoothstreamingmedia", b"[playlist]", b"<asx", b"gab2\0")
ISO_FIRST = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp", b"uuid")
ISO_PARENTS = (b"moov", b"trak", b"mdia", b"minf", b"dinf")
MATROSKA_LINKS = {
    0x3CB923: "PrevUID",
    0x3EB923: "NextUID",
    0x3C83AB: "PrevFilename",
    0x3E83BB: "NextFilename",
}
SEGMENT, INFO, CLUSTER = 0x18538067, 0x1549A966, 0x1F43B675


class DecodeError(ValueError):
    """A video that cannot be decoded; `reason` is a short phrase to count by."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type["DecodeError"], tuple[str, str]]:
        return DecodeError, (self.reason, self.detail)


def identify(video: bytes) -> str:
    """The FFmpeg name of the container; DecodeError for one that is not allowed or refers to other files.

    One of mov, matroska, avi, mpegts, mpeg, mpegvideo, asf, flv, ogg, gif, jpeg, png.
    """
    if not video:
        raise DecodeError("empty file")
    name = _by_magic(video)
    if not name:
        _refuse_text(video)
        raise DecodeError("not a video", "it begins like none of the containers that are read, see docs/data.md")
    if name == "mov":
        _check_iso(video)
    elif name == "matroska":
        _check_matroska(video)
    return name


def is_safe_to_guess(video: bytes, name: str) -> bool:
    """Whether a decoder that guesses the format itself can only guess this one.

    FFmpeg's guesses for text formats end at the first zero byte, with which nearly every ISO file begins. Others are
    searched for what these guesses go by, and for the subtitles of AVI whose format old versions guess as well.
    """
    if name == "mov" and video[0] == 0:
        return True
    if name not in ("mov", "matroska", "avi"):
        return False
    head = (video if name == "avi" else video[:PROBED]).lower()
    return not any(mark in head for mark in TEXT_MARKS)


def _by_magic(video: bytes) -> str:
    head = video[:16]
    if head[4:8] in ISO_FIRST:
        return "mov"
    for magic, name in (
        (b"\x1a\x45\xdf\xa3", "matroska"),
        (b"\x00\x00\x01\xba", "mpeg"),
        (b"\x00\x00\x01\xb3", "mpegvideo"),
        (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "asf"),
        (b"FLV\x01", "flv"),
        (b"OggS", "ogg"),
        (b"GIF87a", "gif"),
        (b"GIF89a", "gif"),
        (b"\xff\xd8\xff", "jpeg"),
        (b"\x89PNG\r\n\x1a\n", "png"),
    ):
        if head.startswith(magic):
            return name
    if head.startswith(b"RIFF") and head[8:12] in (b"AVI ", b"AVIX"):
        return "avi"
    return "mpegts" if _has_transport_packets(video) else ""


def _has_transport_packets(video: bytes) -> bool:
    """Whether 0x47 stands at the beginning of four packets in a row (all of them in a shorter file)."""
    for size in (188, 192, 204):
        for first in range(min(size, len(video) - size)):
            if all(video[at] == 0x47 for at in range(first, min(len(video), first + 4 * size), size)):
                return True
    return False


def _refuse_text(video: bytes) -> None:
    """DecodeError with the name of a playlist, or another text that lists addresses."""
    text = video[:4096].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"\xff\xfe", b"\xfe\xff")):
        text = text.replace(b"\0", b"")[2:].lstrip()
    for beginning, what in TEXT_FORMATS.items():
        is_markup = text.startswith((b"<?xml", b"<!")) and beginning.startswith(b"<") and beginning in text
        if text.startswith(beginning) or is_markup:
            raise DecodeError("refers to other files", f"it is {what}")


def _check_iso(video: bytes) -> None:
    """DecodeError where the movie's data lies elsewhere: data references and reference movies."""
    left = MAX_BOXES
    pending = [(0, len(video))]
    while pending:
        begin, end = pending.pop()
        for kind, start, stop in _boxes(video, begin, end):
            left -= 1
            if left < 0:
                raise DecodeError("malformed container", f"more than {MAX_BOXES} boxes")
            if kind in ISO_PARENTS:
                pending.append((start, stop))
            elif kind == b"dref":
                _check_references(video, start + 8, stop)
            elif kind in (b"rmra", b"rmda", b"rdrf"):
                raise DecodeError("refers to other files", "a QuickTime reference movie (rmra)")
            elif kind == b"cmov":
                raise DecodeError("not a video", "a compressed QuickTime header (cmov); re-encode it")


def _check_references(video: bytes, begin: int, end: int) -> None:
    for number, (kind, start, stop) in enumerate(_boxes(video, begin, end)):
        if number >= 1000:
            raise DecodeError("malformed container", "more than 1000 data references")
        flags = int.from_bytes(video[start : start + 4], "big")
        if not flags & 1 and stop - start > 4 and video[start + 4 : stop].strip(b"\0"):
            name = kind.decode("ascii", "replace").strip()
            raise DecodeError("refers to other files", f"a QuickTime data reference (dref, {name!r})")


def _boxes(video: bytes, begin: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of the content of each box in video[begin:end]."""
    while begin + 8 <= end:
        size, kind = struct.unpack_from(">I4s", video, begin)
        start = begin + 8
        if size == 1 and begin + 16 <= end:
            size, start = int.from_bytes(video[begin + 8 : begin + 16], "big"), begin + 16
        elif size == 0:
            size = end - begin
        if size < start - begin:
            return  # decoders end here, too
        yield kind, start, min(begin + size, end)
        begin += size


def _check_matroska(video: bytes) -> None:
    """DecodeError where the segment says which file goes before or after it."""
    for element, start, stop in _elements(video, 0, len(video)):
        if element != SEGMENT:
            continue
        for inner, first, last in _elements(video, start, stop):
            if inner == CLUSTER:
                return
            if inner != INFO:
                continue
            for field, _, _ in _elements(video, first, last):
                if field in MATROSKA_LINKS:
                    raise DecodeError("refers to other files", f"a Matroska segment link ({MATROSKA_LINKS[field]})")


def _elements(video: bytes, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Identifier, start and end of the content of each EBML element in video[begin:end]."""
    for _ in range(MAX_BOXES):
        if begin >= end or not video[begin]:
            return
        width = 9 - video[begin].bit_length()
        element = int.from_bytes(video[begin : begin + width], "big")
        begin += width
        if begin >= end or not video[begin]:
            return
        width = 9 - video[begin].bit_length()
        size = int.from_bytes(video[begin : begin + width], "big") & ((1 << 7 * width) - 1)
        begin += width
        unknown = size == (1 << 7 * width) - 1  # a live stream's segment
        stop = end if unknown else min(begin + size, end)
        yield element, begin, stop
        begin = stop
    raise DecodeError("malformed container", f"more than {MAX_BOXES} elements")
