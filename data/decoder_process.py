"""The process that decodes for another one: questions come through a socket, frames go back.

What decoders can do wrong happens here: crash, hang, or take all memory. The kernel ends the process when an answer
takes too long, whatever a decoder is doing, and allocations beyond the limit fail. Answers are JSON and raw pixels:
nothing is unpickled on either side.

A message is the length of its JSON (4 bytes), the JSON, then as many bytes as its field `bytes` says.
"""

import json
import os
import resource
import signal
import socket
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np

from data.decode import (
    DecodeError,
    Frames,
    decode_frames,
    find_stream,
    is_picture,
    iterate_frames,
    open_video,
    probe_video,
    to_pixels,
)

MEMORY = 4 << 30  # bytes that one answer may take, beside the video itself
MAX_WORDS = 64 << 20  # bytes of a message's JSON


def send(connection: socket.socket, message: dict[str, Any], content: bytes | memoryview = b"") -> None:
    """Write one message."""
    words = json.dumps({**message, "bytes": len(content)}).encode()
    connection.sendall(len(words).to_bytes(4, "big") + words)
    if len(content):
        connection.sendall(content)


def receive_words(connection: socket.socket) -> dict[str, Any]:
    """The JSON of the next message; EOFError where the other side is gone, ValueError for one that is too long."""
    size = int.from_bytes(receive_exactly(connection, bytearray(4)), "big")
    if size > MAX_WORDS:
        raise ValueError(f"a message of {size} bytes")
    message: dict[str, Any] = json.loads(receive_exactly(connection, bytearray(size)))
    return message


def receive_exactly(connection: socket.socket, target: Any) -> Any:
    """Fill `target`, a writable buffer of bytes."""
    view, done = memoryview(target), 0
    while done < len(view):
        count = connection.recv_into(view[done:])
        if not count:
            raise EOFError
        done += count
    return target


def serve(number: int) -> None:
    """Answer questions on the socket with this file descriptor until the other side is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # meant for the process that asks, whose end is the end of this one
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    connection = socket.socket(fileno=number)
    send(connection, {"ready": True})
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 2)  # what decoders print about broken files; the reason goes back in the answer
    base = _memory_in_use()
    while True:
        try:
            question = receive_words(connection)
            video = bytes(receive_exactly(connection, bytearray(question["bytes"])))
        except (EOFError, OSError):
            return
        _limit_memory(base + MEMORY + 2 * len(video))
        try:
            for message, content in _answer(question, video):
                signal.setitimer(signal.ITIMER_REAL, 0)
                send(connection, message, content)
                signal.setitimer(signal.ITIMER_REAL, question["timeout"])
        except OSError:
            return
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)


def _answer(question: dict[str, Any], video: bytes) -> Iterator[tuple[dict[str, Any], bytes | memoryview]]:
    signal.setitimer(signal.ITIMER_REAL, question["timeout"])
    try:
        if question["do"] == "probe":
            yield {"info": asdict(probe_video(video))}, b""
        elif question["do"] == "decode":
            frames = decode_frames(video, question["indices"], question["decoder"])
            yield {"shape": frames.shape}, _bytes_of(frames)
        else:
            yield from _stream(video, set(question["indices"]))
    except DecodeError as error:
        yield {"error": [error.reason, error.detail]}, b""
    except MemoryError:
        yield {"error": ["out of memory", f"more than {MEMORY >> 30} GiB"]}, b""
    except (ValueError, ArithmeticError, LookupError, TypeError, AttributeError, OSError, RuntimeError) as error:
        yield {"error": ["not decodable", f"{type(error).__name__}: {str(error)[:160]}"]}, b""


def _stream(video: bytes, wanted: set[int]) -> Iterator[tuple[dict[str, Any], bytes | memoryview]]:
    """The wanted frames one by one, from front to back."""
    if is_picture(video):
        pictures = [decode_frames(video, [0])[0]]
        for index, pixels in enumerate(pictures):
            yield {"index": index, "shape": pixels.shape}, _bytes_of(pixels)
    else:
        with open_video(video) as container:
            for index, frame in enumerate(iterate_frames(container, find_stream(container))):
                if index in wanted:
                    pixels = to_pixels(frame)
                    yield {"index": index, "shape": pixels.shape}, _bytes_of(pixels)
    yield {"end": True}, b""


def _bytes_of(frames: Frames) -> memoryview:
    return np.ascontiguousarray(frames).data.cast("B")


def _memory_in_use() -> int:
    """Bytes of writable memory that the process has reserved; 0 where the system does not say."""
    try:
        with open("/proc/self/status") as file:
            fields = dict(line.split(":", 1) for line in file)
        return int(fields["VmData"].split()[0]) * 1024
    except (OSError, KeyError):
        return 0


def _limit_memory(size: int) -> None:
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_DATA, (size, resource.RLIM_INFINITY))
