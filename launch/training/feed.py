"""Batches for the training loop, on their device before they are needed.

Three batches are under way: the step computes one, one is on the device or being copied there, and Lightning has asked
for the next. The module tracks the stream position, so reading ahead is harmless.
"""

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from typing import Any, TypeVar

import torch

from data.loading.loader import Batch, TrainLoader

Item = TypeVar("Item")
Begun = TypeVar("Begun")


class Stream:
    """The loader as an iterable for Lightning; `device` is called when the first batch is read."""

    def __init__(self, loader: TrainLoader, device: Callable[[], torch.device]) -> None:
        self.loader, self.device = loader, device
        self.opened: list[Generator[Batch, None, None]] = []

    def __iter__(self) -> Iterator[Batch]:
        self.opened.append(self._read())
        return self.opened[-1]

    def _read(self) -> Generator[Batch, None, None]:
        device = self.device()
        with closing(iter(self.loader)) as batches:
            if device.type == "cuda":
                yield from look_ahead(batches, Copier(device).begin, Copier.finish)
            else:
                yield from batches

    def close(self) -> None:
        """Stop the loader workers now; at interpreter exit it would take seconds."""
        for batches in self.opened:
            batches.close()


def look_ahead(
    items: Iterable[Item], begin: Callable[[Item], Begun], finish: Callable[[Begun], Item]
) -> Generator[Item, None, None]:
    """Each item after `begin` and `finish`; the work on the next one has begun before it is handed out."""
    waiting: list[Begun] = []
    for item in items:
        waiting.append(begin(item))
        if len(waiting) > 1:
            yield finish(waiting.pop(0))
    for begun in waiting:
        yield finish(begun)


class Copier:
    """Copies batches in pinned memory to a GPU, on a stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream = device, torch.cuda.Stream(device)

    def begin(self, batch: Batch) -> tuple[Batch, Any]:
        """Start the copy; returns the batch and the event after which it is there."""
        with torch.cuda.stream(self.stream):
            return batch.to(self.device, non_blocking=True), self.stream.record_event()

    @staticmethod
    def finish(begun: tuple[Batch, Any]) -> Batch:
        """Let the device, not this process, wait for the copy."""
        batch, copied = begun
        current = torch.cuda.current_stream()
        current.wait_event(copied)
        return batch.record_stream(current)
