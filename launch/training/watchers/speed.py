"""How fast a run is, what it waits for, and how much of the device it uses.

On a GPU times are taken on the device, with events: the host runs ahead, and only where the device has nothing to do
while the next clips are fetched does the data hold the run up. Under DDP the waiting and the memory are those of rank
0; another rank that waits shows in the length of a step, as all wait for it.
"""

import math
import time
from typing import Any

import pytorch_lightning as lightning
import torch
from pytorch_lightning.callbacks import Callback

from launch.meter import matrix_rate
from launch.training.checkpoints import Saver
from launch.training.lightning import find_callback
from launch.training.watchers.board import has_stepped, is_logging, log_numbers, warn
from vjepa.jepa import JEPA

HUNGRY = 0.1  # share of the time spent waiting for clips
PATIENCE = 3  # such readings in a row before it is said,
SETTLED = 30.0  # seconds that they cover: at first the loader's processes are still starting
MOST_TIMES = 8  # no number is named beyond so many times the workers there are


class Clock:
    """Marks in the order of the work, and the seconds between two of them."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def mark(self) -> Any:
        """Now, in the device's own time."""
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, begin: Any, end: Any) -> float:
        """From mark to mark; on a GPU this waits until the device has come to the second."""
        if self.device.type != "cuda":
            return float(end - begin)
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1000


class Speed(Callback):
    """Rates over the steps since the last reading, as often as numbers are logged.

    `latest` holds the last reading, for whoever shows it. Time of checkpoints, pictures and probes is part of the rate,
    not of the waiting.
    """

    def __init__(self, matrix_tflops: float = 0.0, workers: int = 0) -> None:
        self.workers = workers  # loading processes of a rank; 0: the training process loads
        self.hungry: list[tuple[float, float]] = []  # readings in a row that waited too long: seconds, waited ones
        self.told = False  # it has been said
        self.rate = 1e12 * matrix_tflops  # operations a second of one device; 0: measured at the start
        self.flops = 0.0  # operations for a clip
        self.latest: dict[str, float] = {}
        self.clock = Clock(torch.device("cpu"))
        self.opened: tuple[Any, int, int] | None = None  # of the window: mark, step, clips seen
        self.ended: Any = None  # mark at the end of the last batch
        self.waits: list[tuple[Any, Any]] = []  # of the window: from the end of a batch to the begin of the next

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Measure the device."""
        self.clock = Clock(module.device)
        if trainer.is_global_zero and not self.rate:
            half = str(trainer.precision).startswith("bf16")
            self.rate = matrix_rate(torch.bfloat16 if half else torch.float32, module.device, repeats=3)
        if module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(module.device)

    def on_train_batch_start(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """The clips are here."""
        if self.ended is not None:
            self.waits.append((self.ended, self.clock.mark()))

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The batch is done; read where numbers are logged."""
        assert isinstance(module, JEPA)
        self.ended = self.clock.mark()
        if not has_stepped(trainer, batch_idx):
            return
        if self.opened is None:  # not before the first step is over: it compiles and warms up
            self.flops = module.config.clip_flops(batch.size)
        elif is_logging(trainer, batch_idx):
            self._read(trainer, module)
        else:
            return
        self.opened, self.waits = (self.ended, trainer.global_step, module.position), []

    def _read(self, trainer: lightning.Trainer, module: JEPA) -> None:
        if not trainer.is_global_zero or self.opened is None:
            return
        begun, step, clips = self.opened
        seconds = self.clock.seconds(begun, self.ended)
        rate = (module.position - clips) / seconds
        saver = find_callback(trainer, Saver)
        self.latest = {
            "speed/clips_per_s": rate,
            "speed/step_ms": 1000 * seconds / (trainer.global_step - step),
            "speed/data_wait": sum(self.clock.seconds(*wait) for wait in self.waits) / seconds,
            "speed/skipped_samples": saver.loader.tally.skipped.total() if saver else 0,
            "speed/utilisation": rate / trainer.world_size * self.flops / self.rate,
        }
        if module.device.type == "cuda":
            self.latest["speed/peak_memory_gib"] = torch.cuda.max_memory_allocated(module.device) / 2**30
        log_numbers(trainer, self.latest)
        self._feed(trainer, seconds, self.latest["speed/data_wait"])

    def _feed(self, trainer: lightning.Trainer, seconds: float, waited: float) -> None:
        """Say once how many loading processes would keep up: the rest of the time the device works at its own pace."""
        self.hungry = [*self.hungry, (seconds, waited * seconds)] if waited > HUNGRY else []
        total = sum(whole for whole, _ in self.hungry)
        if self.told or len(self.hungry) < PATIENCE or total < SETTLED:
            return
        self.told = True
        warn(trainer, "data_wait", describe_hunger(sum(part for _, part in self.hungry) / total, self.workers))


def describe_hunger(waited: float, workers: int) -> str:
    """What to do about a share of the time that goes into waiting for what so many loading processes deliver.

    They deliver a batch in the time of a step. Without them the training process loads in what is called waiting here.
    """
    needed = math.ceil((workers or waited) / max(1 - waited, 1e-9))
    remedy = f"about {needed} would keep up where there are cores for them"
    if needed > MOST_TIMES * max(1, workers):
        remedy = "no number of them mends that alone: look at the storage first, and at what decoding costs"
    return (
        f"{waited:.0%} of the time goes into waiting for clips from {workers} loading processes (data.workers): "
        f"{remedy}; cheaper clips help too (docs/data.md)"
    )
