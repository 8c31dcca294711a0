"""A multiprocess map that keeps the order and survives items that crash or hang their worker.

Each worker has one item at a time, so a death can be blamed on one item; that worker is replaced, the others go on.
Only a few results wait in memory. With 0 jobs everything runs in this process, unprotected.
"""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 4  # results per worker that may wait for the slowest item


@dataclass
class _Worker:
    process: BaseProcess
    pipe: "Connection[Any, Any]"
    number: int = -1  # index of the current item, -1: idle
    since: float = 0.0


def map_in_order(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    jobs: int,
    timeout: float,
    lost: Callable[[Item, str], Result],
    prepare: Callable[[Item], None] | None = None,
) -> Iterator[Result]:
    """function(item) for all items, in order; lost(item, why) for an item whose process died or took too long.

    `prepare` is called before each item in a worker process, never in this one: it may limit the process's resources.
    """
    if jobs < 1:
        yield from map(function, items)
        return
    pool = _Pool(function, items, min(jobs, max(len(items), 1)), timeout, lost, prepare)
    try:
        for number in range(len(items)):
            while number not in pool.results:
                pool.advance(number)
            yield pool.results.pop(number)
    finally:
        pool.stop()


def count_cores() -> int:
    """CPU cores available to this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Pool(Generic[Item, Result]):
    def __init__(
        self,
        function: Callable[[Item], Result],
        items: Sequence[Item],
        jobs: int,
        timeout: float,
        lost: Callable[[Item, str], Result],
        prepare: Callable[[Item], None] | None,
    ) -> None:
        self.function, self.items, self.timeout, self.lost = function, items, timeout, lost
        self.prepare = prepare
        self.results: dict[int, Result] = {}
        self.next = 0
        self.workers = [self._start_worker() for _ in range(jobs)]

    def advance(self, wanted: int) -> None:
        """Hand out items, then wait until a worker answers, dies or reaches its time limit."""
        ahead = wanted + AHEAD * len(self.workers)
        for worker in self.workers:
            if worker.number < 0 and self.next < min(len(self.items), ahead):
                worker.number, worker.since = self.next, time.monotonic()
                self.next += 1
                try:
                    worker.pipe.send(self.items[worker.number])
                except OSError:
                    continue  # the worker has died; the closed pipe is noticed below
        busy = [worker for worker in self.workers if worker.number >= 0]
        patience = min(worker.since for worker in busy) + self.timeout - time.monotonic()
        ready = wait([worker.pipe for worker in busy], max(patience, 0.0))
        for worker in busy:
            if worker.pipe in ready:
                self._collect(worker)
            elif time.monotonic() - worker.since > self.timeout:
                self._replace(worker, f"timeout: took longer than {self.timeout:g} s")

    def stop(self) -> None:
        for worker in self.workers:
            worker.process.kill()
            worker.process.join()
            worker.pipe.close()

    def _collect(self, worker: _Worker) -> None:
        try:
            result, error = worker.pipe.recv()
        except (EOFError, OSError):
            worker.process.join(5)
            self._replace(worker, f"the decoder crashed (exit code {worker.process.exitcode})")
            return
        if error is not None:
            raise error
        self.results[worker.number] = result
        worker.number = -1

    def _replace(self, worker: _Worker, reason: str) -> None:
        self.results[worker.number] = self.lost(self.items[worker.number], reason)
        worker.process.kill()
        worker.process.join()
        worker.pipe.close()
        self.workers[self.workers.index(worker)] = self._start_worker()

    def _start_worker(self) -> _Worker:
        context = multiprocessing.get_context("spawn")  # decoders do not survive fork
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(self.function, self.prepare, theirs), daemon=True)
        process.start()
        theirs.close()
        return _Worker(process, ours)


def _work(function: Callable[[Any], Any], prepare: Callable[[Any], None] | None, pipe: "Connection[Any, Any]") -> None:
    while True:
        try:
            item = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return
        if prepare is not None:
            prepare(item)
        try:
            answer: tuple[Any, Exception | None] = (function(item), None)
        except Exception as error:
            answer = (None, error)
        try:
            pipe.send(answer)
        except OSError:  # the process that asked has gone
            return
