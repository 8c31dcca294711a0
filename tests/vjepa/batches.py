"""Batches for a tiny JEPA: the same clips for the same step."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vjepa.jepa import JEPA


@dataclass
class Clips:
    """What the module needs of a batch."""

    clips: Tensor
    position: int


def make_batch(step: int, batch: int = 4, first: int = 0, count: int | None = None) -> Clips:
    """Clips `first` ... `first + count` of the `batch` clips of a step."""
    generator = torch.Generator().manual_seed(step)
    clips = torch.randint(0, 256, (batch, 4, 32, 32, 3), generator=generator, dtype=torch.uint8)
    chosen = slice(first, first + (count or batch))
    return Clips(clips[chosen], (step + 1) * batch)


def losses_by_hand(model: JEPA, batches: Iterable[Any]) -> list[float]:
    """The losses of a step for each batch, with Lightning's order of calls but without its trainer."""
    optimizer, losses = model.configure_optimizers(), []
    for step, batch in enumerate(batches):
        model.trainer_step = step  # for tests that read their schedules from it
        loss = model.training_step(batch, 0)
        loss.backward()
        model.on_before_optimizer_step(optimizer)
        optimizer.step()
        optimizer.zero_grad()
        model.target_encoder.update(model.context_encoder, model.momentum_at(step))
        losses.append(float(loss))
    return losses
