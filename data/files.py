"""Files that are whole or not there, and locks that end with the process that holds them.

A file is written beside its name, brought to disk and renamed: whoever opens the name sees all of the old content or
all of the new one, also after a power cut. What a killed process leaves is a hidden `.NAME.xxxxxxxx.part`, which
`remove_leftovers` deletes for whoever knows that nobody else writes there.

Locks are flock(2). They end when the process does, however it ends, and processes forked from it do not keep them.
Between machines they are as good as the file system: NFS passes them on unless it is mounted with nolock or
local_lock, Lustre only with its mount option flock. A process cannot find out that its locks are not seen elsewhere.
"""

import errno
import fcntl
import json
import logging
import os
import secrets
import shutil
import socket
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

PART = ".part"  # ending of what is not whole yet
LONGEST = 255 - len(".") - len(".01234567") - len(PART)  # bytes of a name to which the rest is added
UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)

logger = logging.getLogger(__name__)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Where to write a file or folder, which takes the place of `path` when the block ends; an error removes it.

    A folder replaces nothing but an empty folder: OSError where `path` holds something.
    """
    part = name_part(path)
    try:
        yield part
        publish(part, path)
    except BaseException:
        remove(part)
        raise


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file that is never seen half written."""
    with replacing(path) as part:
        part.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write a file that is never seen half written."""
    write_bytes(path, text.encode())


def write_json(path: Path, content: Any, indent: int | None = 1) -> None:
    """Write plain data as a JSON file that is never seen half written."""
    write_text(path, json.dumps(content, indent=indent) + "\n")


def name_part(path: Path) -> Path:
    """A new name beside `path`, for `publish`; two writers of one file get two names."""
    name = os.fsencode(path.name)[:LONGEST].decode(errors="ignore")
    return path.with_name(f".{name}.{secrets.token_hex(4)}{PART}")


def publish(part: Path, path: Path) -> None:
    """Bring a file or folder to disk and give it its name."""
    for inner in sorted(part.rglob("*")) if part.is_dir() else ():
        sync(inner)
    sync(part)
    os.replace(part, path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file's content, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_FOLDER_SYNC or not path.is_dir():  # some file systems cannot do that for a folder
            raise
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Delete a file or folder, or nothing."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_leftovers(folder: Path, pattern: str = "*") -> None:
    """Delete what killed processes left of files whose names match; nobody else may be writing them."""
    for part in folder.glob(f".{pattern}.{'[0-9a-f]' * 8}{PART}"):
        remove(part)


class InUseError(OSError):
    """Another process holds a lock."""


class Lock:
    """A lock on a file, held or refused; closing it, or losing it, gives it back.

    path: a file that is made where it is missing and stays; its text names the holder of an exclusive lock.
    shared: many may hold it at once, and nobody alone meanwhile. wait: until it is free; else see `held`.
    supported: False where the file system has no locks, which is logged; then everybody holds it.
    """

    def __init__(self, path: Path, shared: bool = False, wait: bool = False) -> None:
        self.path, self.shared = path, shared
        self.held = self.supported = True
        self.last: dict[str, str] = {}  # who had it before and did not give it back: killed, or not seen from here
        kind = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
        while True:
            self.file = open(path, "rb+", buffering=0, opener=_open_or_make)  # noqa: SIM115 -- closed by `close`
            try:
                fcntl.flock(self.file, kind)
            except BlockingIOError:
                self.held = False
            except OSError as error:
                if error.errno not in UNSUPPORTED:
                    self.file.close()
                    raise
                self.supported = False
                logger.warning(
                    "%s: this file system has no locks (%s); work may be done twice", path.parent, error.strerror
                )
            if not self.held or not self.supported or _is_still(path, self.file.fileno()):
                break
            self.file.close()  # it was deleted while we waited: what we locked is nobody's
        _locks.add(self)
        if self.held and self.supported and not shared:
            self.last = self.holder()
            self._note(json.dumps(_describe_self()).encode())

    def holder(self) -> dict[str, str]:
        """Host, process, since when and which job of whoever holds it alone; nothing where that is not known."""
        try:
            facts = json.loads(os.pread(self.file.fileno(), 4096, 0))
            return {name: str(facts[name]) for name in _describe_self()}
        except (ValueError, KeyError, TypeError):
            return {}

    def close(self) -> None:
        """Give it back."""
        if self.held and self.supported and not self.file.closed:
            if not self.shared:
                self._note(b"")
            fcntl.flock(self.file, fcntl.LOCK_UN)
        self._forget()

    def _note(self, text: bytes) -> None:
        os.ftruncate(self.file.fileno(), 0)
        os.pwrite(self.file.fileno(), text, 0)

    def _forget(self) -> None:
        self.held = False
        self.file.close()

    def __enter__(self) -> "Lock":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def claim_folder(folder: Path, command: str, advice: str) -> Lock:
    """The right of one process to let `command` write into a folder, which is made; InUseError where another has it.

    advice: what to do then, beside waiting for the other.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = Lock(folder / f".{command}.lock")
    if not lock.held:
        holder = describe_holder(lock.holder())
        lock.close()
        raise InUseError(f"{folder} is in use by another {command} ({holder}); wait for it, stop it, or {advice}")
    if lock.last.get("host", socket.gethostname()) != socket.gethostname():
        logger.warning(
            "%s: %s held this folder and did not give it back. It was killed, or it still runs on a machine whose "
            "locks are not seen here (NFS with nolock or local_lock, Lustre without flock): make sure that it is gone",
            folder, describe_holder(lock.last),
        )  # fmt: skip
    return lock


def describe_holder(facts: dict[str, str]) -> str:
    """What `Lock.holder` found, in words."""
    if not facts:
        return "which one is not known"
    job = f", job {facts['job']}" if facts["job"] else ""
    return f"process {facts['process']} on {facts['host']}{job}, since {facts['since']}"


_locks: "weakref.WeakSet[Lock]" = weakref.WeakSet()


def _forget_locks() -> None:
    """In a forked process: the locks are its parent's, and must not outlive it in a loading process."""
    for lock in list(_locks):
        lock._forget()


os.register_at_fork(after_in_child=_forget_locks)


def _open_or_make(path: str, flags: int) -> int:
    """For reading and writing, as NFS wants it for either kind of lock; the old text stays."""
    return os.open(path, flags | os.O_CREAT, 0o666)


def _is_still(path: Path, descriptor: int) -> bool:
    """Is the open file the one that has this name now?"""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _describe_self() -> dict[str, str]:
    return {
        "host": socket.gethostname(),
        "process": str(os.getpid()),
        "job": os.environ.get("SLURM_JOB_ID", ""),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
