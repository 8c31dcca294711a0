"""Atomic file writes, and locks that are released when their process exits.

A file is written under a temporary name next to its final one, synced to disk and renamed: a reader sees all of the old
content or all of the new, even after a power cut. A killed process leaves at most a hidden `.NAME.xxxxxxxx.part`;
`remove_leftovers` deletes these, and may only be called when no other process is writing there.

Locks are flock(2). They are released when the process exits, however it exits, and forked processes do not keep them.
Between machines they depend on the file system: NFS forwards them unless mounted with nolock or local_lock, Lustre only
when mounted with flock. A process cannot detect that other machines do not see its locks.
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

PART = ".part"  # suffix of unfinished files
MAX_NAME = 255 - len(".") - len(".01234567") - len(PART)  # bytes of the original name that fit into a temporary one
UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)

logger = logging.getLogger(__name__)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path for a file or folder that replaces `path` when the block ends; deleted on an error.

    A folder can only replace an empty folder: OSError if `path` is not empty.
    """
    part = name_part(path)
    try:
        yield part
        publish(part, path)
    except BaseException:
        remove(part)
        raise


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    with replacing(path) as part:
        part.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, content: Any, indent: int | None = 1) -> None:
    """Write plain data as a JSON file, atomically."""
    write_text(path, json.dumps(content, indent=indent) + "\n")


def name_part(path: Path) -> Path:
    """A new temporary path next to `path`, for `publish`; each writer gets its own."""
    name = os.fsencode(path.name)[:MAX_NAME].decode(errors="ignore")
    return path.with_name(f".{name}.{secrets.token_hex(4)}{PART}")


def publish(part: Path, path: Path) -> None:
    """Sync the file or folder `part` to disk and rename it to `path`."""
    for inner in sorted(part.rglob("*")) if part.is_dir() else ():
        sync(inner)
    sync(part)
    os.replace(part, path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's entries, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_FOLDER_SYNC or not path.is_dir():  # some file systems cannot sync a folder
            raise
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Delete a file or folder if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_leftovers(folder: Path, pattern: str = "*") -> None:
    """Delete unfinished files of killed processes whose names match; no other process may be writing them."""
    for part in folder.glob(f".{pattern}.{'[0-9a-f]' * 8}{PART}"):
        remove(part)


class InUseError(OSError):
    """Another process holds a lock."""


class Lock:
    """A file lock; closing or garbage-collecting it releases it.

    path: the lock file, created if missing and never deleted; its text names the holder of an exclusive lock.
    shared: several processes may hold it at once, but none exclusively meanwhile.
    wait: block until the lock is free; without it, `held` says whether the lock was acquired.
    supported: False if the file system has no locks, which is logged; `held` is then always True.
    """

    def __init__(self, path: Path, shared: bool = False, wait: bool = False) -> None:
        self.path, self.shared = path, shared
        self.held = self.supported = True
        self.last: dict[str, str] = {}  # last holder if it never released the lock: killed, or not visible from here
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
            self.file.close()  # deleted while we waited: we locked a file that nobody else can open
        _locks.add(self)
        if self.held and self.supported and not shared:
            self.last = self.holder()
            self._note(json.dumps(_describe_self()).encode())

    def holder(self) -> dict[str, str]:
        """Host, process, job and start time of the exclusive holder; empty if unknown."""
        try:
            facts = json.loads(os.pread(self.file.fileno(), 4096, 0))
            return {name: str(facts[name]) for name in _describe_self()}
        except (ValueError, KeyError, TypeError):
            return {}

    def close(self) -> None:
        """Release the lock."""
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
    """Create a folder and lock it for this run of `command`; InUseError if another process holds the lock.

    advice: for that error, what the user can do other than wait for the other process or stop it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = Lock(folder / f".{command}.lock")
    if not lock.held:
        holder = describe_holder(lock.holder())
        lock.close()
        raise InUseError(f"{folder} is in use by another {command} ({holder}); wait for it, stop it, or {advice}")
    if lock.last.get("host", socket.gethostname()) != socket.gethostname():
        logger.warning(
            "%s: %s held this folder and never released it. It was killed, or it still runs on a machine whose locks "
            "are not visible here (NFS with nolock or local_lock, Lustre without flock): make sure it is not running",
            folder, describe_holder(lock.last),
        )  # fmt: skip
    return lock


def describe_holder(facts: dict[str, str]) -> str:
    """The result of `Lock.holder` as text."""
    if not facts:
        return "unknown process"
    job = f", job {facts['job']}" if facts["job"] else ""
    return f"process {facts['process']} on {facts['host']}{job}, since {facts['since']}"


_locks: "weakref.WeakSet[Lock]" = weakref.WeakSet()


def _forget_locks() -> None:
    """In a forked process: locks belong to the parent and must not outlive it in a loader's worker."""
    for lock in list(_locks):
        lock._forget()


os.register_at_fork(after_in_child=_forget_locks)


def _open_or_make(path: str, flags: int) -> int:
    """Open for reading and writing, as NFS requires for both kinds of lock, without truncating."""
    return os.open(path, flags | os.O_CREAT, 0o666)


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether the open file is still the one at `path`."""
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
