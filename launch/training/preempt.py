"""Graceful stop on a signal: all ranks agree after a step, save, and exit together.

A signal reaches the ranks at different times, and possibly only some of them. After every optimiser step the ranks
all-reduce the maximum of their flags, on the CPU in a separate process group. The result is read after the next step,
so that neither a device nor a process waits for it: several ranks stop one step later than one would.
"""

from typing import Any

import pytorch_lightning as lightning
import torch
import torch.distributed
from pytorch_lightning.callbacks import Callback

from launch.training import signals


class Preemption(Callback):
    """Ends a run after the step in which any rank received a signal; `signal` is its number, 0 for none."""

    def __init__(self) -> None:
        self.signal = 0
        self.step = 0
        self.group: Any = None
        self.asked: tuple[torch.Tensor, Any] | None = None  # the flag being reduced, and the work to wait for

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """From now on Ctrl-C saves before stopping. ValueError if the ranks do not start at the same step."""
        self.step = trainer.global_step
        if trainer.world_size > 1:
            self.group = torch.distributed.new_group(backend="gloo")
        first, last = -self.agree(-self.step), self.agree(self.step)
        if first != last:
            raise ValueError(
                f"the ranks found different checkpoints, of step {first} and of step {last}: not all nodes see "
                "the same files in the run directory; start again once they do, or fix the shared folder"
            )
        signals.watch_interrupts()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After each optimiser step, read what the ranks agreed on and ask again; after the last the run ends anyway.

        Alone, a process acts at once.
        """
        if trainer.global_step == self.step:
            return
        self.step = trainer.global_step
        self.signal = self.read() if self.group is not None else signals.received()
        self.ask(signals.received())
        if self.signal and self.step < trainer.max_steps:
            trainer.should_stop = True

    def agree(self, number: int) -> int:
        """The maximum of `number` over all ranks."""
        if self.group is None:
            return number
        self.ask(number)
        return self.read()

    def ask(self, number: int) -> None:
        """Begin to find the maximum of `number` over all ranks."""
        if self.group is not None:
            flag = torch.tensor([number])
            maximum = torch.distributed.ReduceOp.MAX
            self.asked = flag, torch.distributed.all_reduce(flag, maximum, group=self.group, async_op=True)

    def read(self) -> int:
        """The maximum last asked for; 0 if there was none."""
        if self.asked is None:
            return 0
        (flag, work), self.asked = self.asked, None
        work.wait()
        return int(flag)

    def on_train_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Restore the default behaviour of Ctrl-C; nothing is left under way."""
        self.read()
        signals.stop_watching_interrupts()

    def on_exception(self, trainer: lightning.Trainer, module: lightning.LightningModule, exception: Any) -> None:
        """Restore the default behaviour of Ctrl-C."""
        signals.stop_watching_interrupts()
