"""Output of the watchers: numbers go to every logger, pictures and text to TensorBoard. Only rank 0 writes."""

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
    """The step under which Lightning logs the batch just done; it counts updates from 0."""
    return max(0, trainer.global_step - 1)


def has_stepped(trainer: lightning.Trainer, batch_idx: int) -> bool:
    """Did this batch end an optimiser step? False while gradients are still being accumulated."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0


def is_logging(trainer: lightning.Trainer, batch_idx: int) -> bool:
    """Does Lightning log after this batch?"""
    return has_stepped(trainer, batch_idx) and trainer.global_step % log_interval(trainer) == 0


def log_numbers(trainer: lightning.Trainer, values: Mapping[str, float]) -> None:
    """Write numbers to TensorBoard and csv, leaving out NaN."""
    defined = {name: value for name, value in values.items() if value == value}
    for one in trainer.loggers:
        one.log_metrics(defined, current_step(trainer))


def log_picture(trainer: lightning.Trainer, name: str, picture: npt.NDArray[np.uint8]) -> None:
    """Write a picture [H, W, 3] to TensorBoard."""
    for board in _boards(trainer):
        board.add_image(name, picture, current_step(trainer), dataformats="HWC")


def warn(trainer: lightning.Trainer, name: str, message: str) -> None:
    """Write a warning to the log and to TensorBoard's text tab."""
    if trainer.is_global_zero:
        with tqdm.external_write_mode(file=sys.stderr):  # so that the progress bar does not overwrite it
            logger.warning("step %d: %s", trainer.global_step, message)
    for board in _boards(trainer):
        board.add_text(f"warnings/{name}", f"step {trainer.global_step}: {message}", current_step(trainer))
        board.flush()


def _boards(trainer: lightning.Trainer) -> list[Any]:
    if not trainer.is_global_zero:
        return []
    return [one.experiment for one in trainer.loggers if isinstance(one, TensorBoardLogger)]
