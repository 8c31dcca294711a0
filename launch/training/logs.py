"""What each rank prints, kept in the run directory: logs/rank-N.log."""

import io
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO


@contextmanager
def keep_output(folder: Path, rank: int) -> Iterator[None]:
    """Write what this process prints to its log as well, and the traceback of an error; bars that redraw are left out.

    Where standard output is that file already, as srun has it in our job script, nothing is done.
    """
    path = folder / "logs" / f"rank-{rank}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", buffering=1) as log:
        if _is_same(sys.stdout, log):
            yield
            return
        screen = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = Both(screen[0], log), Both(screen[1], log)
        try:
            yield
        except Exception:
            traceback.print_exc(file=log)
            raise
        finally:
            sys.stdout, sys.stderr = screen


class Both:
    """A stream and its copy."""

    def __init__(self, screen: TextIO, log: TextIO) -> None:
        self.screen, self.log = screen, log

    def write(self, text: str) -> int:
        """Write to both."""
        if "\r" not in text:
            self.log.write(text)
        return self.screen.write(text)

    def __getattr__(self, name: str) -> object:
        """Everything else is the screen's."""
        return getattr(self.screen, name)


def _is_same(stream: TextIO, log: TextIO) -> bool:
    try:
        return os.path.samestat(os.fstat(stream.fileno()), os.fstat(log.fileno()))
    except (OSError, io.UnsupportedOperation):
        return False
