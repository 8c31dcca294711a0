"""Files that mean harm, or have met it: made here, so that nothing strange lies in the repository."""

import io
import struct

from PIL import Image


def gif(width: int, height: int, frames: int = 1) -> bytes:
    """A GIF of one colour whose frames are all stored in full."""
    file = io.BytesIO()
    Image.new("P", (width, height)).save(file, "GIF")
    whole = file.getvalue()
    begin = whole.index(b"\x2c\0\0\0\0")  # the image block, after the header and the colours
    delay = b"\x21\xf9\x04\0\x04\0\0\0"  # without which it would belong to the frame before
    return b"GIF89a" + whole[6:begin] + (delay + whole[begin:-1]) * frames + whole[-1:]


def endless_gif() -> bytes:
    """Frames for some minutes in some megabytes."""
    return gif(1500, 1500, 6000)


def box(kind: bytes, *content: bytes) -> bytes:
    """A box of an ISO file."""
    whole = b"".join(content)
    return struct.pack(">I4s", 8 + len(whole), kind) + whole


def playlists(address: str) -> dict[str, bytes]:
    """Files that make FFmpeg open `address`, by what they are."""
    return {
        "an HLS playlist": f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{address}\n#EXT-X-ENDLIST\n".encode(),
        "an HLS playlist after a mark": f"\ufeff#EXTM3U\n#EXTINF:10,\n{address}\n".encode(),
        "an HLS master playlist": f"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{address}\n".encode(),
        "an ffconcat list": f"ffconcat version 1.0\nfile '{address}'\n".encode(),
        "an SDP session": b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
        b"a=rtpmap:96 H264/90000\n",
        "a DASH manifest": f'<?xml version="1.0"?>\n<MPD profiles="urn:mpeg:dash:profile:isoff-on-demand:2011">'
        f"<Period><AdaptationSet><Representation><BaseURL>{address}</BaseURL></Representation></AdaptationSet>"
        "</Period></MPD>".encode(),
        "an ASX playlist": f'<ASX version="3.0"><entry><ref href="{address}"/></entry></ASX>'.encode(),
        "a PLS playlist": f"[playlist]\nFile1={address}\n".encode(),
    }


def refer_elsewhere(video: bytes, address: str) -> bytes:
    """An mp4 file whose data reference points to `address`; of the same length, for offsets to hold."""
    begin = video.index(b"dref") - 4
    place = video.index(b"stbl") - 4
    entry = box(b"url ", b"\0\0\0\0", address.encode() + b"\0")
    dref = box(b"dref", b"\0\0\0\0\0\0\0\1", entry)
    grown = len(dref) - (place - begin)
    changed = bytearray(video[:begin] + dref + video[place:])
    for kind in (b"moov", b"trak", b"mdia", b"minf", b"dinf"):
        at = changed.index(kind) - 4
        size = struct.unpack_from(">I", changed, at)[0]
        struct.pack_into(">I", changed, at, size + grown)
    return bytes(changed)


def reference_movie(address: str) -> bytes:
    """A QuickTime movie that is nothing but the address of another."""
    rdrf = box(b"rdrf", b"\0\0\0\0", b"url ", struct.pack(">I", len(address) + 1), address.encode() + b"\0")
    return box(b"ftyp", b"qt  \0\0\0\0qt  ") + box(b"moov", box(b"rmra", box(b"rmda", rdrf)))


def link_segment(video: bytes, name: str) -> bytes:
    """A Matroska file that says which file follows it (NextFilename), in a segment of unknown length."""
    segment = video.index(b"\x18\x53\x80\x67")
    info = video.index(b"\x15\x49\xa9\x66", segment)
    link = b"\x3e\x83\xbb" + bytes([0x80 | len(name)]) + name.encode()
    width = 9 - video[info + 4].bit_length()
    size = int.from_bytes(video[info + 4 : info + 4 + width], "big") & ((1 << 7 * width) - 1)
    content = link + video[info + 4 + width : info + 4 + width + size]
    new = b"\x15\x49\xa9\x66" + (len(content) | 1 << 56).to_bytes(8, "big") + content
    return video[: segment + 4] + b"\x01" + b"\xff" * 7 + new + video[info + 4 + width + size :]
