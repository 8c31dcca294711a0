"""Decoding in a separate process: whatever a video does to a decoder, the caller gets a DecodeError.

The functions of data/decode.py, with a time limit. Each calling process keeps one helper process, started at its first
request and replaced when it dies; returning 16 frames of 256 lines takes about 2 ms. A crash, a hang and running out
of the helper's memory limit each have their own DecodeError reason.
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
from data.decoder_process import MEMORY, receive_exactly, receive_header, send

TIMEOUT = 60.0  # seconds per response, unless the caller sets its own limit
START_ATTEMPTS = 3
START = 120.0  # seconds for the helper to become ready; imports are slow on a busy file system
GRACE = 10.0  # seconds past the time limit before a helper that the kernel's alarm did not end is killed
ROOT = Path(__file__).resolve().parents[1]


def decode_isolated(video: bytes, indices: Sequence[int], decoder: Decoder = "av", timeout: float = TIMEOUT) -> Frames:
    """Frames [T, H, W, C] uint8 at `indices`, as returned by `decode_frames`."""
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
    """The result of `probe_video`."""
    with _own_helper() as helper:
        helper.ask({"do": "probe"}, video, timeout)
        info: dict[str, Any] = helper.receive(timeout)["info"]
    times = info.pop("times")
    return VideoInfo(**info, times=None if times is None else tuple(times))


def stream_isolated(video: bytes, indices: Sequence[int], timeout: float = TIMEOUT) -> Iterator[tuple[int, Frames]]:
    """Index and pixels [H, W, C] of each frame at `indices` in display order, each within `timeout` seconds."""
    helper = _Helper()  # a separate one: the caller may decode other videos between two frames
    try:
        with helper:
            helper.ask({"do": "stream", "indices": [int(index) for index in indices]}, video, timeout)
            while "end" not in (message := helper.receive(timeout)):
                yield message["index"], helper.receive_pixels(message, 3)
    finally:
        helper.stop()


def helper_seconds() -> float:
    """CPU seconds that this process's helper has used; 0 if there is none or the system does not tell."""
    process = None if _shared is None else _shared.process
    try:
        fields = Path(f"/proc/{process.pid if process else 0}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except OSError:
        return 0.0


class _Helper:
    """One decoding process, started on demand."""

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
            self.stop()  # a response that nobody waits for may still arrive
        self.lock.release()

    def ask(self, request: dict[str, Any], video: bytes, timeout: float) -> None:
        """Send a request; a helper that died while idle is replaced."""
        if self.process is not None and self.process.poll() is not None:
            self.stop()
        for attempt in range(START_ATTEMPTS if self.process is None else 0):
            if self._start():
                break
            if attempt + 1 == START_ATTEMPTS:
                raise OSError(
                    f"the decoding process did not start in {START_ATTEMPTS} attempts; see its own message above, or "
                    "check whether this machine is out of memory or process slots"
                )
        assert self.connection is not None
        self.connection.settimeout(timeout + GRACE)
        try:
            send(self.connection, {**request, "timeout": timeout}, [video])
        except OSError as error:
            raise self._explain(timeout) from error

    def receive(self, timeout: float) -> dict[str, Any]:
        """The next response; DecodeError if the video cannot be decoded or the process died."""
        assert self.connection is not None
        try:
            message = receive_header(self.connection)
        except (EOFError, OSError, ValueError) as error:
            raise self._explain(timeout) from error
        if "error" in message:
            reason, detail = message["error"]
            raise _RefusedError(str(reason), str(detail))
        return message

    def receive_pixels(self, message: dict[str, Any], dimensions: int) -> Frames:
        """The pixels that follow a response header."""
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
        """Kill the process; after a fork, a process that the parent owns is only disconnected."""
        if self.connection is not None:
            self.connection.close()
        if self.process is not None and self.owner == os.getpid():
            self.process.kill()
            self.process.wait()
        self.process = self.connection = None

    def _start(self) -> bool:
        """Start the process; False if it died before it was ready, as when the system kills it."""
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
            receive_header(ours)
        except (EOFError, OSError):
            self.stop()
            return False
        return True

    def _explain(self, timeout: float) -> DecodeError:
        """Why there is no response."""
        assert self.process is not None
        try:
            code = self.process.wait(1)
        except subprocess.TimeoutExpired:
            code = -signal.SIGALRM  # it hangs in a state that even the kernel's alarm does not end
        if code == -signal.SIGALRM:
            return DecodeError("timeout", f"decoding took longer than {timeout:g} s")
        if code == -signal.SIGKILL:
            return DecodeError("the decoder was killed", "SIGKILL, which the system sends when memory runs out")
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return DecodeError("the decoder crashed", name)


class _RefusedError(DecodeError):
    """A problem of the video, reported by a healthy helper."""

    def __reduce__(self) -> tuple[type[DecodeError], tuple[str, str]]:
        return DecodeError, (self.reason, self.detail)


_shared: _Helper | None = None


def _own_helper() -> _Helper:
    """This process's helper; a forked process gets its own."""
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
