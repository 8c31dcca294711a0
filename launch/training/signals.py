"""A signal is a flag: who trains looks at it between two steps, saves and stops.

SIGTERM comes from a preemption, an outside requeue, scancel or `kill`; SIGUSR1 shortly before SLURM's time limit;
SIGINT from Ctrl-C. Nothing is done inside a handler: a signal reaches the ranks at different moments, and whoever saves
there waits for ranks that are somewhere else. Imports the standard library only, so that `python -m launch` can install
the handlers before anything that takes seconds to load.
"""

import os
import signal
from types import FrameType

UNFINISHED = 75  # exit status of a run that saved and stopped: EX_TEMPFAIL, "try again"
OTHERS = (signal.SIGTERM, signal.SIGUSR1)

_received: list[int] = []


class Interrupted(Exception):  # noqa: N818
    """A run was asked to stop, saved, and can go on."""


def install() -> None:
    """From now until the process exits SIGTERM and SIGUSR1 raise the flag and do nothing else."""
    for number in OTHERS:
        signal.signal(number, _note)


def ignore() -> None:
    """All is done: a signal must not change the exit status while the interpreter shuts down, which takes seconds."""
    for number in OTHERS:
        signal.signal(number, signal.SIG_IGN)


def watch_interrupts() -> None:
    """From now on the first Ctrl-C raises the flag; the second ends the process as usual."""
    signal.signal(signal.SIGINT, _note_once)


def stop_watching_interrupts() -> None:
    """Ctrl-C ends the process again."""
    if signal.getsignal(signal.SIGINT) is _note_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def received() -> int:
    """Number of the first signal that came, 0 if none did."""
    return _received[0] if _received else 0


def forget() -> None:
    """Lower the flag."""
    _received.clear()


def forget_earlier() -> None:
    """Lower the flag of a run before this one, as in a notebook.

    Not in a process that `install` belongs to: there a signal counts from the first moment.
    """
    if signal.getsignal(OTHERS[0]) is not _note:
        forget()


def _note(number: int, frame: FrameType | None) -> None:
    if not _received:
        # os.write, for a handler may interrupt a print
        os.write(2, f"{signal.Signals(number).name} received: saving at the end of this step\n".encode())
    _received.append(number)


def _note_once(number: int, frame: FrameType | None) -> None:
    stop_watching_interrupts()
    if not _received:
        os.write(2, b"\nsaving at the end of this step; Ctrl-C again stops without saving\n")
    _received.append(number)
