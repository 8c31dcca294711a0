"""Python's garbage collector, run between steps only, at the same step on every rank.

Left to itself it runs at a different moment on each rank, and each time all the others wait for that one.
"""

import gc
from typing import Any

import pytorch_lightning as lightning
from pytorch_lightning.callbacks import Callback

EVERY = 50  # optimiser steps between two collections of young objects
ALL_EVERY = 1000  # optimiser steps between two collections of everything


class GarbageCollector(Callback):
    """Switches automatic collection off during training and collects after every `EVERY`-th step."""

    def __init__(self) -> None:
        self.was_on = False
        self.step = 0

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Collect everything once; from now on only this callback does."""
        self.was_on, self.step = gc.isenabled(), trainer.global_step
        gc.collect()
        gc.disable()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Collect when it is due."""
        if trainer.global_step != self.step:
            self.step = trainer.global_step
            if self.step % EVERY == 0:
                gc.collect(2 if self.step % ALL_EVERY == 0 else 1)

    def on_train_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """As it was before."""
        self._restore()

    def on_exception(self, trainer: lightning.Trainer, module: lightning.LightningModule, exception: Any) -> None:
        """As it was before."""
        self._restore()

    def _restore(self) -> None:
        if self.was_on:
            gc.enable()
