"""Copies what each rank prints to logs/rank-N.log in the run directory."""

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
    """Copy everything this process prints to its log, and the traceback of an error; progress bars are left out.

    Does nothing if standard output already is that file, as under srun in our job script.
    """
    path = folder / "logs" / f"rank-{rank}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", buffering=1) as log:
        if _is_same(sys.stdout, log):
            yield
            return
        screen = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = Tee(screen[0], log), Tee(screen[1], log)
        try:
            yield
        except Exception:
            traceback.print_exc(file=log)
            raise
        finally:
            sys.stdout, sys.stderr = screen


class Tee:
    """A stream that is copied to a log."""

    def __init__(self, screen: TextIO, log: TextIO) -> None:
        self.screen, self.log = screen, log

    def write(self, text: str) -> int:
        """Write to the screen and, unless it redraws a line, to the log."""
        if "\r" not in text:
            self.log.write(text)
        return self.screen.write(text)

    def __getattr__(self, name: str) -> object:
        """Everything else is delegated to the screen."""
        return getattr(self.screen, name)


def _is_same(stream: TextIO, log: TextIO) -> bool:
    try:
        return os.path.samestat(os.fstat(stream.fileno()), os.fstat(log.fileno()))
    except (OSError, io.UnsupportedOperation):
        return False
