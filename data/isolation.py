"""Decoding in a process of its own: whatever a video does to a decoder, the caller gets a DecodeError.

The same functions as in data/decode.py, with a time limit. A process that asks keeps one helper, started at the first
question and replaced when it dies; sending 16 frames of 256 lines back takes about 2 ms. A crash, a hang and a
demand for more memory than the helper may have are all reasons to count a video by.
"""

import atexit
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.containers import DecodeError
from data.decode import Decoder, Frames, VideoInfo
from data.decoder_process import MEMORY, receive_exactly, receive_words, send

TIMEOUT = 60.0  # seconds for one answer where the caller has no limit of its own
START = 120.0  # seconds in which the helper must be ready; a busy file system takes its time
GRACE = 10.0  # seconds beyond the time limit, after which a helper that the kernel should have ended is killed
ROOT = Path(__file__).resolve().parents[1]


def decode_isolated(
    video: bytes, indices: Sequence[int], decoder: Decoder = "auto", timeout: float = TIMEOUT
) -> Frames:
    """Frames [T, H, W, C] uint8 at `indices`, as `decode_frames` gives them."""
    if not len(indices):
        raise ValueError("decode_isolated needs at least one index")
    wanted = [int(index) for index in indices]
    with _own_helper() as helper:
        helper.ask({"do": "decode", "indices": wanted, "decoder": decoder}, video, timeout)
        frames = helper.receive_pixels(helper.receive(timeout), 4)
    if len(frames) != len(wanted):
        raise DecodeError("not decodable", f"{len(frames)} frames for {len(wanted)} indices")
    return frames


def probe_isolated(video: bytes, timeout: float = TIMEOUT) -> VideoInfo:
    """What `probe_video` finds."""
    with _own_helper() as helper:
        helper.ask({"do": "probe"}, video, timeout)
        info: dict[str, Any] = helper.receive(timeout)["info"]
    times = info.pop("times")
    return VideoInfo(**info, times=None if times is None else tuple(times))


def stream_isolated(video: bytes, indices: Sequence[int], timeout: float = TIMEOUT) -> Iterator[tuple[int, Frames]]:
    """Number and pixels [H, W, C] of the frames at `indices` from front to back, at most `timeout` seconds apart."""
    helper = _Helper()  # of its own: the caller may decode other videos between two frames
    try:
        with helper:
            helper.ask({"do": "stream", "indices": [int(index) for index in indices]}, video, timeout)
            while "end" not in (message := helper.receive(timeout)):
                yield message["index"], helper.receive_pixels(message, 3)
    finally:
        helper.stop()


class _Helper:
    """One decoding process, started when it is needed."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.lock = threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None
        self.connection: socket.socket | None = None

    def __enter__(self) -> "_Helper":
        self.lock.acquire()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is not None and not issubclass(kind, _RefusedError):
            self.stop()  # an answer may be on its way that nobody waits for
        self.lock.release()

    def ask(self, question: dict[str, Any], video: bytes, timeout: float) -> None:
        """Send a question; a helper that died while nobody asked it is replaced."""
        if self.process is not None and self.process.poll() is not None:
            self.stop()
        if self.process is None:
            self._start()
        assert self.connection is not None
        self.connection.settimeout(timeout + GRACE)
        try:
            send(self.connection, {**question, "timeout": timeout}, video)
        except OSError as error:
            raise self._explain(timeout) from error

    def receive(self, timeout: float) -> dict[str, Any]:
        """The next answer; DecodeError for the video's problem, or for what became of the process."""
        assert self.connection is not None
        try:
            message = receive_words(self.connection)
        except (EOFError, OSError, ValueError) as error:
            raise self._explain(timeout) from error
        if "error" in message:
            reason, detail = message["error"]
            raise _RefusedError(str(reason), str(detail))
        return message

    def receive_pixels(self, message: dict[str, Any], dimensions: int) -> Frames:
        """The pixels that follow an answer."""
        assert self.connection is not None
        shape = tuple(int(side) for side in message["shape"])
        if len(shape) != dimensions or min(shape) < 1 or not 0 < message["bytes"] == np.prod(shape) <= 2 * MEMORY:
            raise DecodeError("not decodable", f"the decoder returned an array of shape {shape}")
        frames: Frames = np.empty(shape, dtype=np.uint8)
        try:
            receive_exactly(self.connection, frames.data.cast("B"))
        except (EOFError, OSError) as error:
            raise self._explain(0) from error
        return frames

    def stop(self) -> None:
        """End the process; one that another process owns is only let go."""
        if self.connection is not None:
            self.connection.close()
        if self.process is not None and self.owner == os.getpid():
            self.process.kill()
            self.process.wait()
        self.process = self.connection = None

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        program = "import sys; sys.path.insert(0, sys.argv[1]); from data.decoder_process import serve; "
        self.process = subprocess.Popen(
            [sys.executable, "-c", f"{program} serve({theirs.fileno()})", str(ROOT)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        theirs.close()
        self.connection = ours
        ours.settimeout(START)
        try:
            receive_words(ours)
        except (EOFError, OSError) as error:
            self.stop()
            raise RuntimeError(
                "the decoding process does not start; its own message stands above, or this machine is out of memory "
                "or processes"
            ) from error

    def _explain(self, timeout: float) -> DecodeError:
        """Why there is no answer."""
        assert self.process is not None
        try:
            code = self.process.wait(1)
        except subprocess.TimeoutExpired:
            code = -signal.SIGALRM  # it hangs where not even the kernel's alarm ends it
        if code == -signal.SIGALRM:
            return DecodeError("timeout", f"decoding took longer than {timeout:g} s")
        if code == -signal.SIGKILL:
            return DecodeError("the decoder was killed", "SIGKILL, as the system sends where memory is short")
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return DecodeError("the decoder crashed", name)


class _RefusedError(DecodeError):
    """The video's problem, told by a helper that is well."""

    def __reduce__(self) -> tuple[type[DecodeError], tuple[str, str]]:
        return DecodeError, (self.reason, self.detail)


_shared: _Helper | None = None


def _own_helper() -> _Helper:
    """This process's helper; after a fork, another one."""
    global _shared
    if _shared is None or _shared.owner != os.getpid():
        if _shared is not None:
            _shared.stop()
        else:
            atexit.register(_stop_own)
        _shared = _Helper()
    return _shared


def _stop_own() -> None:
    if _shared is not None:
        _shared.stop()
