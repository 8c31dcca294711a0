"""A process that decodes on behalf of another: requests arrive on a socket, frames go back.

A decoder may crash, hang or exhaust memory, and it does so here. The kernel terminates the process when a response
takes too long, whatever the decoder is doing, and allocations beyond the memory limit fail. Responses are JSON and raw
pixels: neither side unpickles anything.

A message is the length of its header (4 bytes), the header (JSON), then a payload of header["bytes"] bytes.
"""

import json
import os
import resource
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from av.video.reformatter import VideoReformatter

from data.decode import (
    DecodeError,
    Frames,
    decode_each,
    find_stream,
    is_picture,
    iterate_frames,
    open_video,
    probe_video,
    to_pixels,
)

MEMORY = 4 << 30  # bytes that one request may use, in addition to the video itself
MAX_HEADER = 64 << 20  # bytes of a message's JSON header


def send(connection: socket.socket, message: dict[str, Any], content: Sequence[Any] = ()) -> None:
    """Send one message; `content` is a series of byte buffers, sent without joining them."""
    header = json.dumps({**message, "bytes": sum(map(len, content))}).encode()
    connection.sendall(len(header).to_bytes(4, "big") + header)
    for part in content:
        connection.sendall(part)


def receive_header(connection: socket.socket) -> dict[str, Any]:
    """Header of the next message; EOFError if the other side has closed, ValueError if the header is too long."""
    size = int.from_bytes(receive_exactly(connection, bytearray(4)), "big")
    if size > MAX_HEADER:
        raise ValueError(f"message header of {size} bytes, at most {MAX_HEADER} are accepted")
    message: dict[str, Any] = json.loads(receive_exactly(connection, bytearray(size)))
    return message


def receive_exactly(connection: socket.socket, target: Any) -> Any:
    """Fill `target`, a writable byte buffer; EOFError if the other side closes first."""
    view, done = memoryview(target), 0
    while done < len(view):
        count = connection.recv_into(view[done:])
        if not count:
            raise EOFError
        done += count
    return target


def serve(number: int) -> None:
    """Serve requests on the socket with file descriptor `number` until the other side closes it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # meant for the parent; when the parent exits, so does this process
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    connection = socket.socket(fileno=number)
    send(connection, {"ready": True})
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 2)  # decoders print about broken files; the reason is part of the response instead
    base = memory_in_use()
    while True:
        try:
            request = receive_header(connection)
            video = bytes(receive_exactly(connection, bytearray(request["bytes"])))
        except (EOFError, OSError):
            return
        limit_memory(base + MEMORY + 2 * len(video))
        try:
            for message, content in _respond(request, video):
                signal.setitimer(signal.ITIMER_REAL, 0)
                send(connection, message, content)
                signal.setitimer(signal.ITIMER_REAL, request["timeout"])
        except OSError:
            return
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)


def _respond(request: dict[str, Any], video: bytes) -> Iterator[tuple[dict[str, Any], list[memoryview]]]:
    signal.setitimer(signal.ITIMER_REAL, request["timeout"])
    try:
        if request["do"] == "probe":
            yield {"info": asdict(probe_video(video))}, []
        elif request["do"] == "decode":
            frames = decode_each(video, request["indices"], request["decoder"])
            yield {"shape": (len(frames), *frames[0].shape)}, [_bytes_of(frame) for frame in frames]
        else:
            yield from _stream(video, set(request["indices"]))
    except DecodeError as error:
        yield {"error": [error.reason, error.detail]}, []
    except MemoryError:
        yield {"error": ["out of memory", f"more than {MEMORY >> 30} GiB"]}, []
    except (ValueError, ArithmeticError, LookupError, TypeError, AttributeError, OSError, RuntimeError) as error:
        yield {"error": ["not decodable", f"{type(error).__name__}: {str(error)[:160]}"]}, []


def _stream(video: bytes, wanted: set[int]) -> Iterator[tuple[dict[str, Any], list[memoryview]]]:
    """The wanted frames one by one, in display order."""
    if is_picture(video):
        if 0 in wanted:
            pixels = decode_each(video, [0])[0]
            yield {"index": 0, "shape": pixels.shape}, [_bytes_of(pixels)]
    else:
        converter = VideoReformatter()
        with open_video(video) as container:
            for index, frame in enumerate(iterate_frames(container, find_stream(container))):
                if index in wanted:
                    pixels = to_pixels(frame, converter)
                    yield {"index": index, "shape": pixels.shape}, [_bytes_of(pixels)]
    yield {"end": True}, []


def _bytes_of(pixels: Frames) -> memoryview:
    return np.ascontiguousarray(pixels).data.cast("B")


def memory_in_use() -> int:
    """Bytes of writable memory reserved by the process; 0 if the system does not report it."""
    try:
        with open("/proc/self/status") as file:
            fields = dict(line.split(":", 1) for line in file)
        return int(fields["VmData"].split()[0]) * 1024
    except (OSError, KeyError):
        return 0


def limit_memory(size: int) -> None:
    """Let allocations fail once this process has `size` bytes of writable memory; on Linux only."""
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_DATA, (size, resource.RLIM_INFINITY))
