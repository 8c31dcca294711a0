"""Files behind URLs, kept in a bounded cache on the local disk.

http and https are read with the standard library, going on where a dropped connection ended; other schemes (s3, gs,
...) through fsspec, if it is installed with the part for that scheme. A cached name is a hash of the whole URL and of
the expected content, so two files never share one. Several processes share a cache: one downloads, the others wait.

A folder may also be a command of the shell, `pipe:COMMAND`, whose output is the file: {} in it stands for the file's
name, or else /name is put at its end. Commands run only where `allow_pipe` says so; names in a manifest cannot add to
them.
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
from typing import IO

from data.files import Lock, remove_leftovers, replacing

logger = logging.getLogger(__name__)

ATTEMPTS = 6
PATIENCE = 30.0  # seconds without a byte
PAUSE = 0.5  # seconds before the second attempt, doubled for each further one
BLOCK = 1 << 20
GONE = (400, 401, 403, 404, 410)  # answers that do not change by asking again
PIPE = "pipe:"


def is_url(name: str) -> bool:
    """Whether a name has a scheme, such as https://... or s3://..., or is a command."""
    return "://" in name or name.startswith(PIPE)


def join_url(folder: str, name: str) -> str:
    """The address of a file in a folder; ValueError for a name that a shell could take for more than a name."""
    if not folder.startswith(PIPE):
        return f"{folder.rstrip('/')}/{name}"
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_./-]*", name):
        raise ValueError(f"{folder}: a file read through a command must have a plain name, found {name!r}; rename it")
    return folder.replace("{}", name) if "{}" in folder else f"{folder.rstrip('/')}/{name}"


def read_url(url: str, allow_pipe: bool = False) -> bytes:
    """The whole content of a small file, with retries."""
    _check_pipe(url, allow_pipe)
    content = b""
    for block in _stream(url, 0):
        content += block
    return content


@dataclass(frozen=True)
class Cache:
    """A folder that holds at most `gigabytes` of downloaded shards; the ones unused for longest go first."""

    folder: str
    gigabytes: float = 100.0
    allow_pipe: bool = False

    def fetch(self, url: str, size: int, sha256: str) -> Path:
        """A local file with the content of `url`; OSError where it cannot be had or is not what was expected."""
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
                    _download(url, part, size, sha256)
            os.utime(path)
        return path

    def _make_room(self, folder: Path, size: int) -> None:
        """Delete the shards unused for longest; readers that still have one open keep it until they close it."""
        found = []
        for path in folder.glob("*.shard"):
            try:
                status = path.stat()
            except FileNotFoundError:
                continue  # another process made room as well
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


def _download(url: str, path: Path, size: int, sha256: str) -> None:
    with open(path, "wb") as file:
        for block in _stream(url, size):
            file.write(block)
    found = path.stat().st_size
    if found != size:
        raise OSError(f"{url}: {found} bytes, the manifest says {size}; the shard is damaged, upload it again")
    if sha256 and hash_file(path) != sha256:
        raise OSError(f"{url}: the content is not what the manifest says (sha256); upload the shard again")


def _stream(url: str, size: int) -> Iterator[bytes]:
    """Blocks of a file; after an interruption the next attempt goes on where it was, `size` telling the end."""
    done, attempt = 0, 0
    while True:
        try:
            for block in _read_from(url, done):
                done += len(block)
                attempt = 0
                yield block
            if done >= size:
                return
            problem = f"ended after {done} of {size} bytes"
        except urllib.error.HTTPError as error:
            problem = f"HTTP {error.code} {error.reason}"
            if error.code in GONE:
                raise FileNotFoundError(f"{url}: {problem}; check the address and the right to read it") from error
        except FileNotFoundError:
            raise
        except (OSError, HTTPException) as error:
            problem = str(error) or type(error).__name__
        attempt += 1
        if attempt >= ATTEMPTS:
            raise OSError(f"{url}: gave up after {ATTEMPTS} attempts ({problem}); is the server reachable?")
        logger.warning("%s: %s; attempt %d of %d follows", url, problem, attempt + 1, ATTEMPTS)
        time.sleep(PAUSE * 2 ** (attempt - 1) * (0.5 + random.random()))


def _check_pipe(url: str, allowed: bool) -> None:
    if url.startswith(PIPE) and not allowed:
        raise ValueError(f"{url}: runs a command, which is switched off; data.allow_pipe=true switches it on")


def _read_from(url: str, start: int) -> Iterator[bytes]:
    if url.startswith(PIPE):
        yield from _read_pipe(url, start)
        return
    if not url.startswith(("http://", "https://")):
        yield from _read_fsspec(url, start)
        return
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        if start and answer.status != 206:  # the server cannot begin in the middle: read over what is known
            _skip(answer, start)
        while block := answer.read(BLOCK):
            yield block


def _read_fsspec(url: str, start: int) -> Iterator[bytes]:
    try:
        import fsspec
    except ImportError as error:
        raise ValueError(f"{url}: needs fsspec with the part for this scheme; pip install fsspec") from error
    try:
        opened = fsspec.open(url, "rb")
    except (ImportError, ValueError) as error:
        raise ValueError(f"{url}: {error}") from error
    with opened as file:
        file.seek(start)
        while block := file.read(BLOCK):
            yield block


def _read_pipe(url: str, start: int) -> Iterator[bytes]:
    """What a command prints, beyond the first `start` bytes; OSError where it fails."""
    with tempfile.TemporaryFile() as complaints:
        process = subprocess.Popen(url[len(PIPE) :], shell=True, stdout=subprocess.PIPE, stderr=complaints)
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
            complaints.seek(0)
            lines = complaints.read(4096).decode(errors="replace").strip().splitlines()
            raise OSError(f"the command ended with {code}" + (f": {lines[-1]}" if lines else ""))


def _skip(answer: "urllib.response.addinfourl | IO[bytes]", count: int) -> None:
    while count > 0:
        block = answer.read(min(count, BLOCK))
        if not block:
            raise OSError("the file is shorter than it was")
        count -= len(block)
