"""Turns a time budget (run.budget) into a number of steps by timing a few training steps."""

import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytorch_lightning as lightning
import torch
from pytorch_lightning.callbacks import Callback

from launch.training.config import TrainConfig
from launch.training.rundir import read_config_of_run

SECONDS = {"s": 1.0, "sec": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
MEASURED, WARMUP = 30, 10  # steps


def parse_duration(text: str, where: str) -> float:
    """Seconds of "90s", "10min", "2.5h" or "5d"; ValueError names `where` otherwise."""
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([a-z]+)\s*", text)
    if found is None or found[2] not in SECONDS or float(found[1]) <= 0:
        raise ValueError(f"{where} must be a duration like 90s, 10min, 2.5h or 5d, got {text!r}")
    return float(found[1]) * SECONDS[found[2]]


class Clock(Callback):
    """Seconds from the end of step `start` to the end of the run.

    With `compute`, on a CPU: CPU time of the training process divided by its threads, which other load on the machine
    does not inflate. On a GPU always wall-clock time.
    """

    def __init__(self, start: int, compute: bool = False) -> None:
        self.start, self.compute = start, compute and not torch.cuda.is_available()
        self.begun, self.seconds, self.steps = 0.0, 0.0, 0

    def on_train_batch_end(self, trainer: lightning.Trainer, *arguments: Any) -> None:
        """Read the clock."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.process_time() / torch.get_num_threads() if self.compute else time.monotonic()
        if trainer.global_step <= self.start:
            self.begun = now
        self.seconds, self.steps = now - self.begun, trainer.global_step - self.start

    @property
    def step_seconds(self) -> float:
        """Mean time of a step."""
        return self.seconds / self.steps


Train = Callable[[TrainConfig, list[Callback]], object]


def measure_step(train: Train, config: TrainConfig, compute: bool = False) -> float:
    """Seconds per optimiser step of this run on this machine, measured in a temporary folder (see `Clock`).

    Says nothing of collapse or divergence: that is for the run itself.
    """
    clock = Clock(WARMUP, compute)
    with tempfile.TemporaryDirectory() as scratch:
        run = replace(
            config.run, output=scratch, steps=MEASURED, total_clips=None, budget=None, loggers=(), progress=False
        )
        health = replace(config.health, max_skips=MEASURED, min_rank=0, min_spread=0)  # never stops, never warns
        train(replace(config, run=run, health=health), [clock])
    return clock.step_seconds


def keep_steps(config: TrainConfig, ranks: int) -> TrainConfig:
    """With run.budget: the config with the number of steps of the run being resumed; a new run needs `within_budget`.

    Raises ValueError for a new run on several ranks: they would have to measure together.
    """
    if not config.run.budget:
        return config
    parse_duration(config.run.budget, "run.budget")
    steps = stored_steps(config)
    if not steps and ranks > 1:
        raise ValueError(f"run.budget requires a single process, got {ranks}; give run.steps or run.total_clips")
    return replace(config, run=replace(config.run, steps=steps or config.run.steps))


def stored_steps(config: TrainConfig) -> int:
    """Number of steps of the run in run.output if it has the same budget; 0 if there is no such run."""
    before = read_config_of_run(Path(config.run.output))
    return before.run.total_steps if before and before.run.budget == config.run.budget else 0


def within_budget(train: Train, config: TrainConfig, ranks: int) -> TrainConfig:
    """The config with the number of steps that fits into run.budget; a resumed run keeps its number of steps."""
    config = keep_steps(config, ranks)
    if not config.run.budget or stored_steps(config):
        return config
    step = measure_step(train, config)
    steps = max(1, int(parse_duration(config.run.budget, "run.budget") / step))
    print(f"a step of {config.run.batch} clips takes {1000 * step:.0f} ms here: {steps} steps in {config.run.budget}")
    return replace(config, run=replace(config.run, steps=steps))
