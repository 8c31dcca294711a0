"""Inspects a training step when a reading is due: makes the module keep its output, and passes it to the readers.

Only rank 0 reads, and only its own part of the batch: no communication between ranks, so nothing can hang.
"""

import time
from collections.abc import Sequence
from typing import Any, Protocol, cast

import pytorch_lightning as lightning
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from launch.training.watchers.board import has_stepped, log_numbers
from vjepa.objectives.objective import StepOutput


class Watchable(Protocol):
    """What a training module must offer to be watched."""

    watching: bool  # set before a step to make the module keep its output
    watched: StepOutput | None  # output of the last such step, detached
    watched_video: Tensor | None  # its clips, normalised [B, C, T, H, W]


class Reader(Protocol):
    """Reads the output of a step every `every` optimiser steps."""

    name: str
    every: int  # 0: never

    def read(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, output: StepOutput, video: Tensor
    ) -> None: ...

    def settle(self, trainer: lightning.Trainer, wait: bool) -> None:
        """Finish what `read` left under way, if it is ready or `wait` says so."""
        return


class Watch(Callback):
    """Runs the readers after the first step, after every `every`-th, and after the last."""

    def __init__(self, readers: Sequence[Reader]) -> None:
        self.readers = readers

    def on_train_batch_start(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Request the output; with gradient accumulation only of the last batch, which ends the step."""
        due = self._due(trainer, trainer.global_step + 1)
        cast(Watchable, module).watching = trainer.is_global_zero and has_stepped(trainer, batch_idx) and bool(due)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Pass the output to the readers that are due, and log the time each one took."""
        for reader in self.readers:
            reader.settle(trainer, wait=False)
        watchable = cast(Watchable, module)
        output, video = watchable.watched, watchable.watched_video
        watchable.watching, watchable.watched, watchable.watched_video = False, None, None
        if output is None or video is None:
            return
        costs = {}
        for reader in self._due(trainer, trainer.global_step):
            _wait_for(video.device)
            begun = time.perf_counter()
            with torch.no_grad():
                reader.read(trainer, module, output, video)
            costs[f"speed/{reader.name}_ms"] = 1000 * (time.perf_counter() - begun)
        log_numbers(trainer, costs)

    def on_train_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Finish the last reading."""
        for reader in self.readers:
            reader.settle(trainer, wait=True)

    def _due(self, trainer: lightning.Trainer, step: int) -> list[Reader]:
        """The readers due after `step` optimiser steps."""
        edge = step in (1, trainer.max_steps)
        return [one for one in self.readers if one.every and (edge or step % one.every == 0)]


def _wait_for(device: torch.device) -> None:
    """Wait for the device to finish, so that the time of a reader does not include the step before it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
