"""The worker processes of a loader: batches in order, whatever becomes of a worker.

Errors travel as values and are raised in the main process with their own message. Each worker writes the sample it is
at on a shared board: where one hangs, the board says which sample it was. Workers that die (the kernel's
out-of-memory killer, an operator) are started again, and what was asked of them is asked again: no batch is lost or
comes twice.
"""

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from data.loading.batch import Batch

logger = logging.getLogger(__name__)

BOARD = 240  # bytes a worker has on the board
HUNG = 10  # times the sample's limit: so long may a batch make no progress at all
DEATHS = 3  # times in a row that workers may die before a batch comes
LOOK = 2.0  # seconds without a batch, after which one looks whether the workers live
PREFETCH = 2  # batches a worker makes ahead
SHARED_MEMORY = "/dev/shm"


class Batches(Protocol):
    """A series of batches: what is asked for from `start` on, and how an answer is made in a worker."""

    def numbers(self, start: int) -> Iterator[Any]: ...

    def make(self, number: Any, board: "Board") -> Batch: ...

    def batch_bytes(self) -> int: ...


class Board:
    """A line of shared memory for each worker, saying which sample it is at."""

    def __init__(self, workers: int) -> None:
        self._memory = multiprocessing.get_context().RawArray("c", BOARD * max(workers, 1))

    def write(self, text: str) -> None:
        """Called in a worker."""
        info = get_worker_info()
        first = BOARD * (info.id if info else 0)
        self._memory[first : first + BOARD] = text.encode(errors="replace")[:BOARD].ljust(BOARD, b"\0")

    def read(self) -> list[str]:
        """The sample each worker is at."""
        raw = bytes(self._memory)
        lines = [raw[first : first + BOARD].rstrip(b"\0") for first in range(0, len(raw), BOARD)]
        return [line.decode(errors="replace") for line in lines if line]


def start_workers(batches: Batches, start: int, workers: int, timeout: float) -> Generator[Batch, None, None]:
    """Batches in order, made by `workers` processes (0: this one), `timeout` seconds being the limit of a sample."""
    check_shared_memory(batches.batch_bytes(), workers)
    numbers, deaths = _Numbers(batches.numbers(start)), 0
    while True:
        board = Board(workers)
        try:
            for batch in _run(batches, numbers, board, workers, timeout):
                numbers.settle()
                deaths = 0
                yield batch
            return
        except _DiedError as error:
            deaths += 1
            at = ", ".join(board.read())
            if deaths >= DEATHS:
                raise RuntimeError(
                    f"worker processes died {DEATHS} times without a batch in between ({error}); they were at {at}. "
                    "If the machine is out of memory, lower data.workers or the batch; else pack without these samples"
                ) from error
            logger.warning("a worker process died (%s) while they were at %s; they are started again", error, at)
            numbers.ask_again()


def check_shared_memory(batch_bytes: int, workers: int, folder: str = SHARED_MEMORY) -> None:
    """OSError where the batches that lie ready would not fit into shared memory, in which workers hand them over."""
    if not workers or not os.path.isdir(folder):
        return
    status = os.statvfs(folder)
    free, needed = status.f_bavail * status.f_frsize, batch_bytes * (PREFETCH * workers + 1)
    if free < needed:
        raise OSError(
            f"{folder} has {free / 1e6:.0f} MB free, {workers} workers with {PREFETCH} batches each ready need "
            f"{needed / 1e6:.0f} MB: make room there (docker run --shm-size), or lower data.workers or the batch"
        )


class _DiedError(Exception):
    """A worker process is gone."""


def _run(
    batches: Batches, numbers: "_Numbers", board: Board, workers: int, timeout: float
) -> Generator[Batch, None, None]:
    loader: DataLoader[Any] = DataLoader(
        _Work(batches, board),
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        collate_fn=_same,
        pin_memory=torch.cuda.is_available(),
        timeout=min(LOOK, HUNG * timeout) if workers else 0,
        prefetch_factor=PREFETCH if workers else None,
    )
    with _undisturbed():
        iterator: Any = iter(loader)
    try:
        while True:
            answer = _next_answer(iterator, board, HUNG * timeout)
            if answer is None:
                return
            if isinstance(answer, Exception):
                raise answer
            yield answer
    finally:
        if workers:  # now, not when the garbage collector finds time: a fork of this process must not inherit it
            iterator._shutdown_workers()
            for worker in iterator._workers:
                worker.kill()  # one that hangs; they do not hear SIGTERM


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Start workers that signals to all processes of a job do not take from a run that is about to save.

    They inherit the blocked signals. And a worker's death must be found where a batch is waited for: torch's handler
    would raise an error in the middle of whatever the main thread is doing.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1})
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        if main and handler is not None:
            signal.signal(signal.SIGCHLD, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _next_answer(iterator: Iterator[Any], board: Board, limit: float) -> Any:
    """A batch or an error from the workers, None at the end."""
    begun = time.monotonic()
    while True:
        try:
            return next(iterator, None)
        except RuntimeError as error:
            text = str(error)
            if "DataLoader worker" in text and ("exited unexpectedly" in text or "killed by signal" in text):
                raise _DiedError(text.splitlines()[0]) from error
            if "timed out" not in text:
                raise
            if time.monotonic() - begun < limit:
                continue
            raise RuntimeError(
                f"no batch for {limit:g} s; the workers were at {', '.join(board.read())}. One of these "
                "samples hangs the decoder: pack without it, or raise data.timeout if the storage is that slow"
            ) from error


class _Work(Dataset[Any]):
    def __init__(self, batches: Batches, board: Board) -> None:
        self.batches, self.board = batches, board

    def __getitem__(self, number: Any) -> Any:
        try:
            batch = self.batches.make(number, self.board)
        except (ValueError, OSError) as error:
            return error
        if get_worker_info() is None:
            return batch
        try:
            for value in vars(batch).values():
                for array in value.values() if isinstance(value, dict) else (value,):
                    if isinstance(array, torch.Tensor):
                        array.share_memory_()  # here, where an error can be told, not in the thread that hands it over
        except RuntimeError as error:
            return OSError(
                f"no shared memory for a batch ({str(error).splitlines()[0]}): make room in {SHARED_MEMORY}, or lower "
                "data.workers or the batch"
            )
        return batch


class _Numbers(Sampler[Any]):
    """What is asked of workers, with what they still owe an answer to."""

    def __init__(self, numbers: Iterator[Any]) -> None:
        self.numbers = numbers
        self.owed: deque[Any] = deque()
        self.again: deque[Any] = deque()

    def __iter__(self) -> Iterator[Any]:
        while True:
            if self.again:
                number = self.again.popleft()
            else:
                number = next(self.numbers, None)
                if number is None:
                    return
            self.owed.append(number)
            yield number

    def settle(self) -> None:
        """The oldest question is answered."""
        self.owed.popleft()

    def ask_again(self) -> None:
        """Workers died with all that was asked of them."""
        self.again.extendleft(reversed(self.owed))
        self.owed.clear()


def _same(answer: Any) -> Any:
    return answer
