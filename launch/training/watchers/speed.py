"""Throughput of a run, its data wait, and the utilisation of the device.

On a GPU, times are measured on the device with events: the host runs ahead, so data is a bottleneck only if the device
idles while the next clips are fetched. Under DDP, data wait and memory are those of rank 0; waiting on another rank
shows up in the step time, because all ranks wait for it.
"""

import math
import time
from typing import Any

import pytorch_lightning as lightning
import torch
from pytorch_lightning.callbacks import Callback

from launch.meter import matrix_rate
from launch.training.lightning import find_callback
from launch.training.saving import Saver
from launch.training.watchers.board import has_stepped, is_logging, log_numbers, warn
from vjepa.jepa import JEPA

DATA_WAIT_LIMIT = 0.1  # fraction of the time spent waiting for clips above which a reading counts as slow
SLOW_READINGS = 3  # warn after this many slow readings in a row
SLOW_SECONDS = 30.0  # that cover at least this time: at startup the workers are still starting
MAX_WORKER_FACTOR = 8  # recommend no more than this many times the present workers


class Clock:
    """Time marks in the order of the device's work, and the seconds between two of them."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def mark(self) -> Any:
        """A mark at the current point of the device's work."""
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, begin: Any, end: Any) -> float:
        """Seconds between two marks; on a GPU this waits until the device has reached the second."""
        if self.device.type != "cuda":
            return float(end - begin)
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1000


class Speed(Callback):
    """Rates over the steps since the last reading, whenever numbers are logged.

    `latest` holds the last reading, for display. Time spent on checkpoints, pictures and probes counts towards the rate
    but not as data wait.
    """

    def __init__(self, matrix_tflops: float = 0.0, workers: int = 0, mixed: bool = False) -> None:
        self.mixed = mixed  # images beside clips: the FLOPs of a batch are not counted
        self.workers = workers  # loader workers per rank; 0: the training process loads
        self.slow: list[tuple[float, float]] = []  # consecutive slow readings: seconds, of which data wait
        self.warned = False
        self.rate = 1e12 * matrix_tflops  # peak FLOP/s of one device; 0: measured at startup
        self.flops = 0.0  # FLOPs per clip
        self.latest: dict[str, float] = {}
        self.clock = Clock(torch.device("cpu"))
        self.opened: tuple[Any, int, int] | None = None  # start of the window: mark, step, clips seen
        self.ended: Any = None  # mark at the end of the last batch
        self.waits: list[tuple[Any, Any]] = []  # in the window: from the end of a batch to the start of the next

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Measure the device's peak rate."""
        self.clock = Clock(module.device)
        if trainer.is_global_zero and not self.rate:
            half = str(trainer.precision).startswith("bf16")
            self.rate = matrix_rate(torch.bfloat16 if half else torch.float32, module.device, repeats=3)
        if module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(module.device)

    def on_train_batch_start(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """The clips have arrived: record the wait for them."""
        if self.ended is not None:
            self.waits.append((self.ended, self.clock.mark()))

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The batch is done; take a reading when numbers are logged."""
        assert isinstance(module, JEPA)
        self.ended = self.clock.mark()
        if not has_stepped(trainer, batch_idx):
            return
        if self.opened is None:  # the first step is excluded: it compiles and warms up
            self.flops = math.nan if self.mixed else module.config.clip_flops(batch.size)
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
        if saver and saver.stops:
            self.latest["speed/checkpoint_ms"] = 1000 * max(saver.stops)
            saver.stops.clear()
        if module.device.type == "cuda":
            self.latest["speed/peak_memory_gib"] = torch.cuda.max_memory_allocated(module.device) / 2**30
        log_numbers(trainer, self.latest)
        self._warn_if_slow(trainer, seconds, self.latest["speed/data_wait"])

    def _warn_if_slow(self, trainer: lightning.Trainer, seconds: float, waited: float) -> None:
        """Warn once if data loading is the bottleneck, with the number of workers that would keep up."""
        self.slow = [*self.slow, (seconds, waited * seconds)] if waited > DATA_WAIT_LIMIT else []
        total = sum(whole for whole, _ in self.slow)
        if self.warned or len(self.slow) < SLOW_READINGS or total < SLOW_SECONDS:
            return
        self.warned = True
        warn(trainer, "data_wait", describe_data_wait(sum(part for _, part in self.slow) / total, self.workers))


def describe_data_wait(waited: float, workers: int) -> str:
    """What to do if the fraction `waited` of the time goes into waiting for this number of workers.

    While the data is the bottleneck, the workers produce one batch per step time. Without workers the training process
    loads the data itself, and that is the time counted as waiting.
    """
    needed = math.ceil((workers or waited) / max(1 - waited, 1e-9))
    remedy = f"about {needed} would keep up, given enough cores"
    if needed > MAX_WORKER_FACTOR * max(1, workers):
        remedy = "more workers alone will not fix this: check the storage first, and the cost of decoding"
    return (
        f"{waited:.0%} of the time is spent waiting for clips from {workers} workers (data.workers): "
        f"{remedy}; clips that are cheaper to decode help too (docs/data.md)"
    )
