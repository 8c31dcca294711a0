"""Remote files, kept in a size-limited cache on the local disk.

http and https are read with the standard library and resume where a connection dropped; other schemes (s3, gs, ...) go
through fsspec, if it is installed with support for that scheme. The name of a cached file is a hash of the whole URL
and the expected content, so no two files share one. Several processes may share a cache: one downloads, the others
wait.

A folder may also be a shell command, `pipe:COMMAND`, whose output is the file: {} is replaced by the file name, without
{} "/name" is appended. Commands run only if `allow_pipe` is set; file names from a manifest cannot inject anything.
"""

import hashlib
import logging
import os
import random
import re
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any

from data.files import Lock, remove_leftovers, replacing
from data.loading.web import open_address

logger = logging.getLogger(__name__)

CACHE = "~/.cache/video-shards"  # where shards go that have to be fetched whole
OUTAGE = 600.0  # seconds without progress after which a download gives up
READ_TIMEOUT = 30.0  # seconds without a byte, or with fewer than MIN_RATE bytes a second, that end an attempt
MIN_RATE = 1000  # bytes per second; less is a server that hangs, or one that means to hold the run up
PAUSE = 0.5  # seconds before the second attempt, doubled for each further attempt up to MAX_PAUSE
MAX_PAUSE = 20.0
REPORT = 30.0  # seconds between warnings of one outage
MAX_MANIFEST = 1 << 28  # bytes
BLOCK = 1 << 20  # bytes
PERMANENT = (400, 401, 403, 404, 410)  # HTTP errors that are not retried
PIPE = "pipe:"


def is_url(name: str) -> bool:
    """Whether a name has a scheme, such as https://... or s3://..., or is a `pipe:` command."""
    return "://" in name or name.startswith(PIPE)


def join_url(folder: str, name: str) -> str:
    """URL (or path, or command) of a file in a folder; ValueError for a name that is not safe in a shell command."""
    if not folder.startswith(PIPE):
        return f"{folder.rstrip('/')}/{name}"
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_./-]*", name):
        raise ValueError(f"{folder}: a file read through a command must have a plain name, found {name!r}; rename it")
    return folder.replace("{}", name) if "{}" in folder else f"{folder.rstrip('/')}/{name}"


def read_url(url: str, allow_pipe: bool = False, outage: float = OUTAGE) -> bytes:
    """The whole content of a small file, with retries; ValueError beyond MAX_MANIFEST bytes."""
    _check_pipe(url, allow_pipe)
    content = bytearray()
    for block in _stream(url, 0, outage):
        content += block
        if len(content) > MAX_MANIFEST:
            raise ValueError(f"{url}: more than {MAX_MANIFEST} bytes, no manifest is that long")
    return bytes(content)


@dataclass(frozen=True)
class Cache:
    """A folder with at most `gigabytes` of downloaded shards; the least recently used are deleted first."""

    folder: str
    gigabytes: float = 100.0
    allow_pipe: bool = False
    outage: float = OUTAGE

    def fetch(self, url: str, size: int, sha256: str) -> Path:
        """A local file with the content of `url`; OSError if it cannot be downloaded or differs from the manifest."""
        _check_pipe(url, self.allow_pipe)
        folder = Path(self.folder).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        name = hashlib.sha256(f"{url}\n{size}\n{sha256}".encode()).hexdigest()[:40]
        path = folder / f"{name}.shard"
        with Lock(folder / f"{name}.lock", wait=True):
            if not path.is_file():
                remove_leftovers(folder, path.name)
                self._make_room(folder, size)
                with replacing(path) as part:
                    _download(url, part, size, sha256, self.outage)
            os.utime(path)
        return path

    def _make_room(self, folder: Path, size: int) -> None:
        """Delete the least recently used shards; a reader that has one open can still read it until it closes it."""
        found = []
        for path in folder.glob("*.shard"):
            try:
                status = path.stat()
            except FileNotFoundError:
                continue  # another process deleted it
            found.append((status.st_mtime, status.st_size, path))
        excess = sum(entry[1] for entry in found) + size - self.gigabytes * 1e9
        for _, bytes_freed, path in sorted(found):
            if excess <= 0:
                return
            path.unlink(missing_ok=True)
            excess -= bytes_freed


def hash_file(path: Path) -> str:
    """The sha256 of a file."""
    state = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            state.update(block)
    return state.hexdigest()


def _download(url: str, path: Path, size: int, sha256: str, outage: float) -> None:
    """Write exactly `size` bytes; what a server sends beyond them is ignored with a warning."""
    left = size
    with open(path, "wb") as file:
        for block in _stream(url, size, outage):
            file.write(block[:left])
            if len(block) > left:
                logger.warning("%s: longer than the %d bytes in the manifest; the rest is ignored", url, size)
                break
            left -= len(block)
    if sha256 and hash_file(path) != sha256:
        raise OSError(f"{url}: the sha256 is not what the manifest says; the shard is damaged, upload it again")


def _stream(url: str, size: int, outage: float) -> Iterator[bytes]:
    """Blocks of a file of at least `size` bytes; after an interruption the next attempt resumes where it stopped.

    OSError after `outage` seconds without progress, that is, with fewer bytes than MIN_RATE gives in READ_TIMEOUT.
    """
    done, fresh, patience = 0, 0, Patience(url, outage)
    while True:
        try:
            for block in refuse_trickle(_read_from(url, done)):
                done, fresh = done + len(block), fresh + len(block)
                if fresh >= MIN_RATE * READ_TIMEOUT:
                    patience.renew()
                    fresh = 0
                yield block
            if done >= size:
                return
            problem = f"ended after {done} of {size} bytes"
        except urllib.error.HTTPError as error:
            problem = f"HTTP {error.code} {error.reason}"
            if error.code in PERMANENT:
                raise FileNotFoundError(f"{url}: {problem}; check the URL and your permission to read it") from error
        except FileNotFoundError:
            raise
        except (OSError, HTTPException) as error:
            problem = str(error) or type(error).__name__
        patience.wait(problem)


class Patience:
    """Waits between the attempts to reach a server; OSError once nothing has been achieved for `outage` seconds."""

    def __init__(self, url: str, outage: float) -> None:
        self.url, self.outage = url, outage
        self.reported = float("-inf")
        self.renew()

    def renew(self) -> None:
        """Something has been achieved."""
        self.since, self.attempt = time.monotonic(), 0

    def wait(self, problem: str) -> None:
        """Wait after a failed attempt, longer each time."""
        self.attempt += 1
        now = time.monotonic()
        left = self.outage - (now - self.since)
        if left <= 0:
            raise OSError(
                f"{self.url}: gave up after {self.outage:g} s without progress ({problem}); is the server reachable? "
                "data.outage is how long to wait for it"
            )
        if now - self.reported >= REPORT:
            logger.warning("%s: %s; trying again for up to %.0f s", self.url, problem, left)
            self.reported = now
        pause = min(PAUSE * 2 ** min(self.attempt - 1, 10), MAX_PAUSE) * (0.5 + random.random())
        time.sleep(min(pause, left))


def refuse_trickle(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """The same blocks; OSError if fewer than MIN_RATE bytes a second arrive."""
    begun, found = time.monotonic(), 0
    for block in blocks:
        found += len(block)
        yield block
        seconds = time.monotonic() - begun
        if seconds >= READ_TIMEOUT:
            if found < MIN_RATE * READ_TIMEOUT:
                raise OSError(f"only {found} bytes in {seconds:.0f} s")
            begun, found = time.monotonic(), 0


def _check_pipe(url: str, allowed: bool) -> None:
    if url.startswith(PIPE) and not allowed:
        raise ValueError(f"{url}: running commands is disabled; data.allow_pipe=true enables it")


def _read_from(url: str, start: int) -> Iterator[bytes]:
    if url.startswith(PIPE):
        yield from _read_pipe(url, start)
        return
    if not url.startswith(("http://", "https://")):
        yield from _read_fsspec(url, start)
        return
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    with open_address(request, READ_TIMEOUT) as answer:
        skipped = start if answer.status != 206 else 0  # a server that ignores Range sends what was read before
        _skip(answer, skipped)
        announced = answer.headers.get("Content-Length", "")
        missing = int(announced) - skipped if announced.isdecimal() else 0
        while block := answer.read1(BLOCK):  # what has arrived, so that a slow server is noticed
            missing -= len(block)
            yield block
        if missing > 0:  # http.client reports this only if the whole body is read at once
            raise OSError(f"the connection closed {missing} bytes before the end")


def open_fsspec(url: str) -> tuple[Any, str]:
    """fsspec's file system for a URL, and the path in it."""
    try:
        import fsspec
    except ImportError as error:
        raise ValueError(f"{url}: needs fsspec with support for this scheme; pip install fsspec") from error
    try:
        filesystem, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ValueError(f"{url}: {error}") from error
    return filesystem, path


def _read_fsspec(url: str, start: int) -> Iterator[bytes]:
    filesystem, path = open_fsspec(url)
    with filesystem.open(path, "rb") as file:
        file.seek(start)
        while block := file.read(BLOCK):
            yield block


def _read_pipe(url: str, start: int) -> Iterator[bytes]:
    """The output of a command after the first `start` bytes; OSError if it fails."""
    with tempfile.TemporaryFile() as stderr:
        process = subprocess.Popen(url[len(PIPE) :], shell=True, stdout=subprocess.PIPE, stderr=stderr)
        assert process.stdout is not None
        try:
            _skip(process.stdout, start)
            while block := process.stdout.read(BLOCK):
                yield block
            code = process.wait()
        finally:
            process.kill()
            process.stdout.close()
            process.wait()
        if code:
            stderr.seek(0)
            lines = stderr.read(4096).decode(errors="replace").strip().splitlines()
            raise OSError(f"the command ended with {code}" + (f": {lines[-1]}" if lines else ""))


def _skip(answer: "urllib.response.addinfourl | IO[bytes]", count: int) -> None:
    while count > 0:
        block = answer.read(min(count, BLOCK))
        if not block:
            raise OSError("the file is shorter than at the previous attempt")
        count -= len(block)
