"""Targets of a frozen teacher for a student of another size, whose moving average is what is kept (V-JEPA 2.1)."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import nn

from vjepa.encoder import EncoderConfig
from vjepa.registry import TARGETS
from vjepa.targets import FrozenTargets, Targets, move_average


@TARGETS.register("distilled")
class DistilledTargets(FrozenTargets):
    """A fixed encoder, beside which a moving average of the student is kept for evaluation and export (V-JEPA 2.1)."""

    def __init__(self, encoder: Any, levels: Sequence[int] = (-1,)) -> None:
        super().__init__(encoder, levels)
        self.student: Any = None

    @classmethod
    def build(cls, encoder: Any, levels: Sequence[int], frozen: EncoderConfig | None) -> "Targets":
        """See `Targets`; the average begins as a copy of the student."""
        built = super().build(encoder, levels, frozen)
        assert isinstance(built, cls)
        built.student = deepcopy(encoder).requires_grad_(False)
        return built

    @torch.no_grad()
    def update(self, encoder: nn.Module, momentum: float) -> None:
        """Move the average of the student; the targets stay as they are."""
        move_average(self.student, encoder, momentum)

    @property
    def moving_average(self) -> nn.Module | None:
        """The average of the student."""
        found: nn.Module = self.student
        return found
