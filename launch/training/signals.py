"""Signal handlers that only set a flag: the training loop checks it between steps, saves and stops.

SIGTERM comes from a preemption, an external requeue, scancel or `kill`; SIGUSR1 shortly before SLURM's time limit;
SIGINT from Ctrl-C. The handlers do no work: a signal reaches the ranks at different times, and a rank that saved inside
its handler would wait for ranks that are elsewhere. Imports only the standard library, so that `vjepa` can
install the handlers before the slow imports.
"""

import os
import signal
from types import FrameType

UNFINISHED = 75  # exit status of a run that saved and stopped: EX_TEMPFAIL, "try again"
OTHERS = (signal.SIGTERM, signal.SIGUSR1)

_received: list[int] = []


class Interrupted(Exception):  # noqa: N818
    """A run was asked to stop, saved its state, and can be resumed."""


def install() -> None:
    """Until the process exits, SIGTERM and SIGUSR1 only set the flag."""
    for number in OTHERS:
        signal.signal(number, _note)


def ignore() -> None:
    """Ignore signals at exit: shutdown takes seconds, and a signal must not change the exit status."""
    for number in OTHERS:
        signal.signal(number, signal.SIG_IGN)


def watch_interrupts() -> None:
    """From now on the first Ctrl-C sets the flag; the second ends the process as usual."""
    signal.signal(signal.SIGINT, _note_once)


def stop_watching_interrupts() -> None:
    """Restore the default behaviour of Ctrl-C."""
    if signal.getsignal(signal.SIGINT) is _note_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def received() -> int:
    """Number of the first signal received, 0 if none."""
    return _received[0] if _received else 0


def forget() -> None:
    """Clear the flag."""
    _received.clear()


def forget_earlier() -> None:
    """Clear the flag left by an earlier run in the same process, as in a notebook.

    Does nothing after `install`: there a signal counts from process start.
    """
    if signal.getsignal(OTHERS[0]) is not _note:
        forget()


def _note(number: int, frame: FrameType | None) -> None:
    if not _received:
        # os.write, because a handler may interrupt a print
        os.write(2, f"{signal.Signals(number).name} received: saving at the end of this step\n".encode())
    _received.append(number)


def _note_once(number: int, frame: FrameType | None) -> None:
    stop_watching_interrupts()
    if not _received:
        os.write(2, b"\nsaving at the end of this step; Ctrl-C again stops without saving\n")
    _received.append(number)
