"""Weights & Biases as a callback: every logged metric, offline until `wandb sync`. Needs pip install wandb.

vjepa train tiny_cpu data.path=SHARDS run.output=runs/tiny run.plugins=[examples/wandb_log.py]
"""

from pathlib import Path
from typing import Any

import pytorch_lightning as lightning
import wandb

from vjepa.registry import CALLBACKS


@CALLBACKS.register("wandb")
class WandbLog(lightning.Callback):
    """One W&B run per run directory, however often it is interrupted."""

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        folder = Path(trainer.loggers[0].save_dir or ".")  # the run directory
        if trainer.is_global_zero:
            wandb.init(dir=str(folder), id=folder.resolve().name, resume="allow", mode="offline")

    def on_train_batch_end(self, trainer: lightning.Trainer, *arguments: Any) -> None:
        if trainer.is_global_zero and trainer.global_step % trainer.log_every_n_steps == 0:
            wandb.log({name: float(value) for name, value in trainer.callback_metrics.items()}, trainer.global_step)

    def on_train_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if trainer.is_global_zero:
            wandb.finish()
