"""Locks on files, which end with the process that holds them however it ends."""

import errno
import fcntl
import logging
from io import TextIOWrapper
from pathlib import Path
from types import TracebackType

logger = logging.getLogger(__name__)

UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class Lock:
    """A lock, held or refused; closing it, or losing it, gives it back."""

    def __init__(self, file: TextIOWrapper, held: bool, supported: bool = True) -> None:
        self.file, self.held, self.supported = file, held, supported

    def close(self) -> None:
        """Give it back, although loading processes may still have the file open."""
        if self.held and self.supported:
            fcntl.flock(self.file, fcntl.LOCK_UN)
        self.held = False
        self.file.close()

    def __enter__(self) -> "Lock":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def try_lock(path: Path, shared: bool = False) -> Lock:
    """A lock if nobody has it now (`shared`: if nobody has it for himself); see `Lock.held`."""
    return _lock(path, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)


def wait_lock(path: Path) -> Lock:
    """A lock, once whoever has it gives it back."""
    return _lock(path, fcntl.LOCK_EX)


def _lock(path: Path, kind: int) -> Lock:
    file = open(path, "a+")  # noqa: SIM115, open as long as the lock is held; NFS wants reading for a shared one
    try:
        fcntl.flock(file, kind)
    except BlockingIOError:
        return Lock(file, False)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            file.close()
            raise
        logger.warning("%s: this file system has no locks (%s); work may be done twice", path.parent, error.strerror)
        return Lock(file, True, supported=False)
    return Lock(file, True)
