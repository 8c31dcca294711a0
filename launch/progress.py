"""One progress bar for a training run: steps, loss, clips a second, time left."""

from typing import Any

import pytorch_lightning as lightning
from pytorch_lightning.callbacks import Callback
from tqdm import tqdm


class Progress(Callback):
    """Counts optimiser steps; what Lightning shows counts batches of an epoch, and our loader has no epochs."""

    def __init__(self) -> None:
        self.bar: tqdm[Any] | None = None
        self.step = 0

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Open the bar where the run continues."""
        self.step = trainer.global_step
        if trainer.is_global_zero:
            self.bar = tqdm(total=trainer.max_steps, initial=self.step, unit="step", dynamic_ncols=True)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar; the loss is read as often as it is logged, for reading it waits for the device."""
        if self.bar is None or trainer.global_step == self.step:
            return
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self.bar.set_postfix(loss=f"{float(outputs['loss']):.4f}", refresh=False)
        self.bar.update(trainer.global_step - self.step)
        self.step = trainer.global_step

    def on_train_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()

    def on_exception(self, trainer: lightning.Trainer, module: lightning.LightningModule, exception: Any) -> None:
        """Close the bar, so that the message stands on a line of its own."""
        if self.bar is not None:
            self.bar.close()
