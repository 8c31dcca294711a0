"""Reports updates skipped by the module's guard, and stops a run that keeps skipping.

The guard decides on the device at every step; this callback reads its counters whenever numbers are logged, on every
rank (they are equal on all ranks), so that all ranks stop at the same step.
"""

from typing import Any

import pytorch_lightning as lightning
from pytorch_lightning.callbacks import Callback

from launch.training.checkpoints import list_checkpoints
from launch.training.lightning import find_callback
from launch.training.saving import Saver
from launch.training.watchers.board import is_logging, log_numbers, warn
from vjepa.jepa import JEPA


class DivergedError(ValueError):
    """A run that diverged: too many updates in a row were skipped."""


class SkipAlarm(Callback):
    """Warns of skipped updates; raises DivergedError after more than `max_skips` in a row."""

    def __init__(self, max_skips: int) -> None:
        self.max_skips = max_skips
        self.reported = 0  # number of skips already reported

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Do not report again the skips from before a restart."""
        assert isinstance(module, JEPA)
        self.reported = int(module.guard.skipped)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Read the counters when numbers are logged."""
        assert isinstance(module, JEPA)
        if not is_logging(trainer, batch_idx):
            return
        skipped, row = int(module.guard.skipped), int(module.guard.skipped_in_a_row)
        log_numbers(trainer, {"warnings/skipped_updates": skipped})
        if skipped > self.reported:
            warn(
                trainer,
                "skipped_updates",
                f"UPDATES SKIPPED: {skipped - self.reported} since the last report, {skipped} in total, the last {row} "
                "in a row: the gradient was not finite or far above its average. The weights are unchanged",
            )
            self.reported = skipped
        if row > self.max_skips:
            raise DivergedError(
                f"step {trainer.global_step}: the last {row} updates were all skipped, health.max_skips allows "
                f"{self.max_skips} in a row: the gradient was not finite or far above its average. "
                f"{name_checkpoint(trainer, trainer.global_step - row)}. Look at grad_norm/* and loss/* before the "
                "first skip; docs/health.md explains what to change"
            )


def name_checkpoint(trainer: lightning.Trainer, step: int) -> str:
    """A sentence naming the newest checkpoint written at `step` or before."""
    saver = find_callback(trainer, Saver)
    written = list_checkpoints(saver.folder) if saver else {}
    good = [path for at, path in written.items() if at <= step]
    return f"The last good checkpoint is {good[0]}" if good else f"No checkpoint of step {step} or before is left"
