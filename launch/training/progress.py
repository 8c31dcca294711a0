"""Progress of a training run: a bar on a terminal, an occasional line elsewhere.

Both show step, loss, clips per second, the fraction of time spent waiting for data, and the time left.
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

LINE_INTERVAL = 30.0  # seconds between two lines when there is no terminal


class Progress(Callback):
    """Counts optimiser steps; Lightning's bar counts the batches of an epoch, and our loader has no epochs.

    The loss is read only when it is logged, because reading it waits for the device. Rates come from the run's `Speed`.
    """

    def __init__(self, line_interval: float = LINE_INTERVAL) -> None:
        self.line_interval = line_interval
        self.bar: tqdm[Any] | None = None
        self.loss = math.nan
        self.printed = -math.inf  # when the last line was printed
        self.begun, self.first = 0.0, 0  # time and step at which this process started training

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Start counting at the current step."""
        self.begun, self.first, self.printed = time.monotonic(), trainer.global_step, -math.inf
        if trainer.is_global_zero and sys.stderr.isatty():
            self.bar = tqdm(total=trainer.max_steps, initial=self.first, unit="step", dynamic_ncols=True)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the bar, or print a line when one is due."""
        if not trainer.is_global_zero:
            return
        last = trainer.global_step == trainer.max_steps
        logged = last or is_logging(trainer, batch_idx)
        if logged:
            self.loss = float(outputs["loss"])
        if self.bar is not None:
            if logged:
                self.bar.set_postfix_str(self._describe(trainer), refresh=False)
            self.bar.update(trainer.global_step - self.bar.n)
        elif logged and (last or time.monotonic() - self.printed >= self.line_interval):
            self.printed = time.monotonic()
            done = f"step {trainer.global_step:,} of {trainer.max_steps:,}"
            print(f"{done}, {self._describe(trainer)}, {self._time_left(trainer)} left", file=sys.stderr, flush=True)

    def on_train_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Close the bar."""
        self._close()

    def on_exception(self, trainer: lightning.Trainer, module: lightning.LightningModule, exception: Any) -> None:
        """Close the bar, so that the error message starts on its own line."""
        self._close()

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def _describe(self, trainer: lightning.Trainer) -> str:
        """Loss, rate and data wait as text."""
        parts, speed = [f"loss {self.loss:.4f}"], find_callback(trainer, Speed)
        if speed and speed.latest:
            parts.append(f"{speed.latest['speed/clips_per_s']:.3g} clips/s")
            parts.append(f"{100 * speed.latest['speed/data_wait']:.0f} % data wait")
        return ", ".join(parts)

    def _time_left(self, trainer: lightning.Trainer) -> timedelta:
        """Time left at the mean pace since this process started, in whole seconds."""
        pace = (time.monotonic() - self.begun) / max(1, trainer.global_step - self.first)
        return timedelta(seconds=round(pace * (trainer.max_steps - trainer.global_step)))
