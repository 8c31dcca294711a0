"""Where watchers write: every logger of the run, and TensorBoard for what is no number. Nothing on ranks beyond 0."""

import logging
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytorch_lightning as lightning
from pytorch_lightning.loggers import TensorBoardLogger
from tqdm import tqdm

from launch.training.lightning import log_interval

logger = logging.getLogger(__name__)


def current_step(trainer: lightning.Trainer) -> int:
    """The step that Lightning writes beside the loss of the batch just done: updates count from 0 there."""
    return max(0, trainer.global_step - 1)


def has_stepped(trainer: lightning.Trainer, batch_idx: int) -> bool:
    """Did this batch end an optimiser step, or is it one of several that are added up?"""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0


def is_logging(trainer: lightning.Trainer, batch_idx: int) -> bool:
    """Does Lightning log after this batch?"""
    return has_stepped(trainer, batch_idx) and trainer.global_step % log_interval(trainer) == 0


def log_numbers(trainer: lightning.Trainer, values: Mapping[str, float]) -> None:
    """Write numbers to TensorBoard and csv; what is not a number has nothing to say and is left out."""
    known = {name: value for name, value in values.items() if value == value}
    for one in trainer.loggers:
        one.log_metrics(known, current_step(trainer))


def log_picture(trainer: lightning.Trainer, name: str, picture: npt.NDArray[np.uint8]) -> None:
    """Write a picture [H, W, 3] to TensorBoard."""
    for board in _boards(trainer):
        board.add_image(name, picture, current_step(trainer), dataformats="HWC")


def warn(trainer: lightning.Trainer, name: str, message: str) -> None:
    """Say it in the log and keep it in TensorBoard's texts."""
    if trainer.is_global_zero:
        with tqdm.external_write_mode(file=sys.stderr):  # a bar must not run into it
            logger.warning("step %d: %s", trainer.global_step, message)
    for board in _boards(trainer):
        board.add_text(f"warnings/{name}", f"step {trainer.global_step}: {message}", current_step(trainer))
        board.flush()


def _boards(trainer: lightning.Trainer) -> list[Any]:
    if not trainer.is_global_zero:
        return []
    return [one.experiment for one in trainer.loggers if isinstance(one, TensorBoardLogger)]
