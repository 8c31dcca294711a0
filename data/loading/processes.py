"""The worker processes of a loader: batches arrive in order, even if a worker dies.

Processes are forked, unless a GPU or its communication library is in use: forking then may corrupt what they registered
with the network card, so a server that was started as a program of its own forks them.

Errors are passed as values and raised in the main process with their own message. Each worker writes its current sample
to a shared board, which shows the culprit when a worker hangs. Workers that die (out-of-memory killer, an operator) are
restarted and their pending requests are issued again: no batch is lost or delivered twice.
"""

import atexit
import logging
import multiprocessing
import os
import resource
import signal
import threading
import time
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
import torch.distributed
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from data.loading.batch import Batch

logger = logging.getLogger(__name__)

BOARD = 240  # bytes per worker on the board
BATCH_TIMEOUT_FACTOR = 10  # a batch may take this many times the time limit of a sample
MAX_DEATHS = 3  # consecutive worker deaths without a batch in between that stop the run
LIVENESS_INTERVAL = 2.0  # seconds without a batch after which the workers are checked
PREFETCH = 2  # batches prefetched by each worker
SHARED_MEMORY = "/dev/shm"
FILES_BESIDE = 256  # open files of a process besides its shards: libraries, pipes, batches in shared memory
FORK_SAFE = ("gloo", "fake")  # communication libraries whose processes may fork


class Batches(Protocol):
    """A series of batches: the requests from `start` on, and how a worker makes the batch for a request."""

    def numbers(self, start: int) -> Iterator[Any]: ...

    def make(self, number: Any, board: "Board") -> Batch: ...

    def batch_bytes(self) -> int: ...


class Board:
    """Shared memory with one line per worker: the sample it is working on."""

    def __init__(self, workers: int) -> None:
        self._memory = multiprocessing.get_context().RawArray("c", BOARD * max(workers, 1))

    def write(self, text: str) -> None:
        """Set this worker's line; called in a worker."""
        info = get_worker_info()
        first = BOARD * (info.id if info else 0)
        self._memory[first : first + BOARD] = text.encode(errors="replace")[:BOARD].ljust(BOARD, b"\0")

    def read(self) -> list[str]:
        """The sample each worker is working on."""
        raw = bytes(self._memory)
        lines = [raw[first : first + BOARD].rstrip(b"\0") for first in range(0, len(raw), BOARD)]
        return [line.decode(errors="replace") for line in lines if line]


def start_workers(
    batches: Batches, start: int, workers: int, timeout: float, outage: float = 0.0
) -> Generator[Batch, None, None]:
    """Batches in order, made by `workers` processes (0: this process).

    timeout: seconds that a sample may take; outage: seconds that a batch may wait for a server in addition.
    """
    limit = BATCH_TIMEOUT_FACTOR * timeout + outage
    check_shared_memory(batches.batch_bytes(), workers)
    numbers, deaths = _RequestQueue(batches.numbers(start)), 0
    while True:
        board = Board(workers)
        try:
            for batch in _run(batches, numbers, board, workers, limit):
                numbers.mark_done()
                deaths = 0
                yield batch
            return
        except _DiedError as error:
            deaths += 1
            at = ", ".join(board.read())
            if deaths >= MAX_DEATHS:
                raise OSError(
                    f"worker processes died {deaths} times without a batch in between ({error}); they were at {at}. "
                    "If the machine is out of memory, lower data.workers or the batch size; else pack without these "
                    "samples"
                ) from error
            logger.warning("a worker process died (%s); the workers were at %s and are restarted", error, at)
            numbers.requeue()


def check_shared_memory(batch_bytes: int, workers: int, folder: str = SHARED_MEMORY) -> None:
    """Raise OSError if the prefetched batches do not fit into shared memory, through which workers pass them."""
    if not workers or not os.path.isdir(folder):
        return
    status = os.statvfs(folder)
    free, needed = status.f_bavail * status.f_frsize, batch_bytes * (PREFETCH * workers + 1)
    if free < needed:
        raise OSError(
            f"{folder} has {free / 1e6:.0f} MB free, {workers} workers with {PREFETCH} batches each need "
            f"{needed / 1e6:.0f} MB: enlarge it (docker run --shm-size), or lower data.workers or the batch size"
        )


def check_open_files(shards: int) -> None:
    """Let this process and its workers open `shards` shards; OSError if the system's limit is lower."""
    needed = shards + FILES_BESIDE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise OSError(
            f"a loader process needs {needed} open files ({shards} of them shards), the limit is {hard}: raise it "
            "(ulimit -Hn), or lower data.shuffle_shards or data.lanes"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def start_method() -> str | None:
    """How to start workers: None for the system's way (on Linux: fork), or "forkserver" where forking is unsafe."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    backends = set(torch.distributed.get_backend().split(",")) if distributed else set[str]()
    unsafe = torch.cuda.is_initialized() or any(name.rpartition(":")[2] not in FORK_SAFE for name in backends)
    if not unsafe or "forkserver" not in multiprocessing.get_all_start_methods():
        return None
    multiprocessing.get_context("forkserver").set_forkserver_preload(["data.loading.workers"])
    return "forkserver"


class _DiedError(Exception):
    """A worker process has died."""


def _run(
    batches: Batches, numbers: "_RequestQueue", board: Board, workers: int, limit: float
) -> Generator[Batch, None, None]:
    loader: DataLoader[Any] = DataLoader(
        _Work(batches, board),
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        collate_fn=_identity,
        pin_memory=torch.cuda.is_available(),
        timeout=min(LIVENESS_INTERVAL, limit) if workers else 0,
        prefetch_factor=PREFETCH if workers else None,
        multiprocessing_context=start_method() if workers else None,
    )
    with _shielded_from_signals():
        iterator: Any = iter(loader)
    if workers:
        _alive.update(iterator._workers)
    try:
        while True:
            answer = _next_answer(iterator, board, limit)
            if answer is None:
                return
            if isinstance(answer, Exception):
                raise answer
            yield answer
    finally:
        if workers:  # now, not at garbage collection: a fork of this process must not inherit the workers
            iterator._shutdown_workers()
            for worker in iterator._workers:
                worker.kill()  # in case it hangs; workers block SIGTERM
                _alive.discard(worker)


_alive: set[Any] = set()  # workers whose batches have not been consumed to the end


@atexit.register  # after multiprocessing's own handler was, hence run before it
def _kill_workers() -> None:
    """Kill the workers of loaders that nobody closed, for which multiprocessing would wait for ever.

    Its SIGTERM does not reach them, and they only stop by themselves when this process is gone.
    """
    for worker in _alive:
        if worker._parent_pid == os.getpid():
            worker.kill()


@contextmanager
def _shielded_from_signals() -> Iterator[None]:
    """Start workers that ignore signals sent to all processes of a job, so that the run can still save a checkpoint.

    Workers inherit the blocked signals. And torch's SIGCHLD handler is removed: it would raise an error in the middle
    of whatever the main thread is doing, while a worker's death must be noticed where a batch is waited for.
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
    """The next batch or error from the workers, None at the end."""
    begun = time.monotonic()
    while True:
        try:
            return next(iterator, None)
        except (ConnectionError, EOFError, FileNotFoundError) as error:  # it died while it handed over a batch
            raise _DiedError(f"{type(error).__name__} while receiving a batch") from error
        except RuntimeError as error:
            text = str(error)
            if "DataLoader worker" in text and ("exited unexpectedly" in text or "killed by signal" in text):
                raise _DiedError(text.splitlines()[0]) from error
            if "timed out" not in text:
                raise
            if time.monotonic() - begun < limit:
                continue
            raise OSError(
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
            batch = batch.share_memory()  # here, not in the sending thread: errors can be reported
        except RuntimeError as error:
            return OSError(
                f"no shared memory for a batch ({str(error).splitlines()[0]}): enlarge {SHARED_MEMORY}, or lower "
                "data.workers or the batch size"
            )
        return batch


class _RequestQueue(Sampler[Any]):
    """The requests sent to the workers; remembers those that are not answered yet."""

    def __init__(self, numbers: Iterator[Any]) -> None:
        self.numbers = numbers
        self.pending: deque[Any] = deque()
        self.retry: deque[Any] = deque()

    def __iter__(self) -> Iterator[Any]:
        while True:
            if self.retry:
                number = self.retry.popleft()
            else:
                number = next(self.numbers, None)
                if number is None:
                    return
            self.pending.append(number)
            yield number

    def mark_done(self) -> None:
        """The oldest request has been answered."""
        self.pending.popleft()

    def requeue(self) -> None:
        """The workers died: issue all pending requests again."""
        self.retry.extendleft(reversed(self.pending))
        self.pending.clear()


def _identity(answer: Any) -> Any:
    return answer
