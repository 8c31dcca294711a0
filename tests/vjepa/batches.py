"""Batches for a tiny JEPA: the same clips for the same step."""

from dataclasses import dataclass

import torch
from torch import Tensor


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
