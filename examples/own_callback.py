"""A callback of your own: any Lightning callback. This one writes a line every quarter of the run.

vjepa train small data.path=SHARDS run.output=runs/mine run.plugins=[examples/own_callback.py]
"""

from typing import Any

import pytorch_lightning as lightning

from vjepa.registry import CALLBACKS


@CALLBACKS.register("quarters")
class Quarters(lightning.Callback):
    """A registered callback is part of every run that names its module as a plugin."""

    def on_train_batch_end(self, trainer: lightning.Trainer, *arguments: Any) -> None:
        done, total = trainer.global_step, trainer.max_steps
        if trainer.is_global_zero and done * 4 // total > (done - 1) * 4 // total:
            print(f"{done * 4 // total} of 4 quarters: step {done}, loss {trainer.callback_metrics['loss']:.3f}")
