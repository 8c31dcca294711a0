"""How far a training run is: a bar on a terminal, a line now and then everywhere else.

Both show step, loss, clips a second, the share of the time spent waiting for data, and the time left.
"""

import math
import sys
import time
from datetime import timedelta
from typing import Any

import pytorch_lightning as lightning
from pytorch_lightning.callbacks import Callback
from tqdm import tqdm

from launch.training.lightning import find_callback
from launch.training.watchers.board import is_logging
from launch.training.watchers.speed import Speed

QUIET = 30.0  # seconds between two lines, where there is no terminal


class Progress(Callback):
    """Counts optimiser steps; what Lightning shows counts batches of an epoch, and our loader has no epochs.

    The loss is read as often as it is logged, for reading it waits for the device. Rates come from the run's `Speed`.
    """

    def __init__(self, quiet: float = QUIET) -> None:
        self.quiet = quiet
        self.bar: tqdm[Any] | None = None
        self.loss = math.nan
        self.said = -math.inf  # when the last line was written
        self.begun, self.first = 0.0, 0  # time and steps done when this process began to train

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Begin where the run continues."""
        self.begun, self.first, self.said = time.monotonic(), trainer.global_step, -math.inf
        if trainer.is_global_zero and sys.stderr.isatty():
            self.bar = tqdm(total=trainer.max_steps, initial=self.first, unit="step", dynamic_ncols=True)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move on."""
        if not trainer.is_global_zero:
            return
        last = trainer.global_step == trainer.max_steps
        told = last or is_logging(trainer, batch_idx)
        if told:
            self.loss = float(outputs["loss"])
        if self.bar is not None:
            if told:
                self.bar.set_postfix_str(self._describe(trainer), refresh=False)
            self.bar.update(trainer.global_step - self.bar.n)
        elif told and (last or time.monotonic() - self.said >= self.quiet):
            self.said = time.monotonic()
            done = f"step {trainer.global_step:,} of {trainer.max_steps:,}"
            print(f"{done}, {self._describe(trainer)}, {self._time_left(trainer)} left", file=sys.stderr, flush=True)

    def on_train_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Close the bar."""
        self._close()

    def on_exception(self, trainer: lightning.Trainer, module: lightning.LightningModule, exception: Any) -> None:
        """Close the bar, so that the message stands on a line of its own."""
        self._close()

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def _describe(self, trainer: lightning.Trainer) -> str:
        """loss, rate, waiting."""
        words, speed = [f"loss {self.loss:.4f}"], find_callback(trainer, Speed)
        if speed and speed.latest:
            words.append(f"{speed.latest['speed/clips_per_s']:.3g} clips/s")
            words.append(f"{100 * speed.latest['speed/data_wait']:.0f} % data wait")
        return ", ".join(words)

    def _time_left(self, trainer: lightning.Trainer) -> timedelta:
        """At the mean pace since this process began, in whole seconds."""
        pace = (time.monotonic() - self.begun) / max(1, trainer.global_step - self.first)
        return timedelta(seconds=round(pace * (trainer.max_steps - trainer.global_step)))
