"""Identify a file's container from its first bytes; only containers on this allow-list ever reach a decoder.

FFmpeg guesses the format from the content, and some formats it knows (HLS, DASH, concat, SDP) list other files and URLs
that it then opens. So the format is determined here and passed to the decoder by name, and files that refer to other
files are rejected whatever their name.
"""

import struct
from collections.abc import Iterator

MAX_BOXES = 100_000  # per ISO file or Matroska header; a file made only of boxes would take minutes to parse
PROBED = 1 << 20  # bytes that FFmpeg reads to guess a format

TEXT_FORMATS = {  # first bytes of a text file -> its format
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
    """A video that cannot be decoded; `reason` is a short phrase under which such videos are counted."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type["DecodeError"], tuple[str, str]]:
        return DecodeError, (self.reason, self.detail)


def identify(video: bytes) -> str:
    """FFmpeg's name for the container; DecodeError if it is not on the allow-list or refers to other files.

    One of mov, matroska, avi, mpegts, mpeg, mpegvideo, asf, flv, ogg, gif, jpeg, png.
    """
    if not video:
        raise DecodeError("empty file")
    name = _by_magic(video)
    if not name:
        _refuse_text(video)
        raise DecodeError("not a video", "its first bytes match no supported container, see docs/data.md")
    if name == "mov":
        _check_iso(video)
    elif name == "matroska":
        _check_matroska(video)
    return name


def is_safe_to_guess(video: bytes, name: str) -> bool:
    """Whether a decoder that guesses the format by itself is certain to guess this one.

    FFmpeg's text-format probes stop at the first zero byte, and nearly every ISO file starts with one. Other files are
    searched for the strings these probes look for, and for AVI subtitles, whose format old versions guess too.
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
    """Whether four consecutive packets start with 0x47 (all packets, in a shorter file)."""
    for size in (188, 192, 204):
        for first in range(min(size, len(video) - size)):
            if all(video[at] == 0x47 for at in range(first, min(len(video), first + 4 * size), size)):
                return True
    return False


def _refuse_text(video: bytes) -> None:
    """Raise DecodeError, naming the format, for a playlist or another text file that lists URLs."""
    text = video[:4096].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"\xff\xfe", b"\xfe\xff")):
        text = text.replace(b"\0", b"")[2:].lstrip()
    for beginning, what in TEXT_FORMATS.items():
        is_markup = text.startswith((b"<?xml", b"<!")) and beginning.startswith(b"<") and beginning in text
        if text.startswith(beginning) or is_markup:
            raise DecodeError("refers to other files", f"it is {what}")


def _check_iso(video: bytes) -> None:
    """Raise DecodeError if the movie's data is in another file: data references and reference movies."""
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
    """Type, content start and content end of each box in video[begin:end]."""
    while begin + 8 <= end:
        size, kind = struct.unpack_from(">I4s", video, begin)
        start = begin + 8
        if size == 1 and begin + 16 <= end:
            size, start = int.from_bytes(video[begin + 8 : begin + 16], "big"), begin + 16
        elif size == 0:
            size = end - begin
        if size < start - begin:
            return  # decoders stop here too
        yield kind, start, min(begin + size, end)
        begin += size


def _check_matroska(video: bytes) -> None:
    """Raise DecodeError if the segment names the file that comes before or after it."""
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
    """ID, content start and content end of each EBML element in video[begin:end]."""
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
        unknown = size == (1 << 7 * width) - 1  # the segment of a live stream
        stop = end if unknown else min(begin + size, end)
        yield element, begin, stop
        begin = stop
    raise DecodeError("malformed container", f"more than {MAX_BOXES} elements")
