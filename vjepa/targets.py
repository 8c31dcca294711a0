"""Where the targets come from: a moving average of the context encoder (the teacher).

B clips, N tokens, D width.
"""

from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from vjepa.vit import Encoder


@dataclass(frozen=True)
class TeacherConfig:
    """Momentum of the moving average, from start to final, linearly over the run (V-JEPA 1: 0.998 to 1)."""

    momentum: float = 0.998
    final_momentum: float = 1.0

    def __post_init__(self) -> None:
        if not (0 <= self.momentum <= 1 and 0 <= self.final_momentum <= 1):
            raise ValueError(
                f"teacher.momentum and teacher.final_momentum must lie in [0, 1], "
                f"got {self.momentum} and {self.final_momentum}"
            )


class TargetEncoder(nn.Module):
    """A moving average of an encoder, in fp32, that no gradient reaches."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = deepcopy(encoder).requires_grad_(False)

    @torch.no_grad()
    def forward(self, video: Tensor) -> Tensor:
        """Targets of all tokens: video [B, C, T, H, W] -> [B, N, D], each normalised over D (LayerNorm, no affine)."""
        features: Tensor = self.encoder(video)
        return functional.layer_norm(features.float(), features.shape[-1:])

    @torch.no_grad()
    def update(self, encoder: Encoder, momentum: float) -> None:
        """parameter <- momentum * parameter + (1 - momentum) * the encoder's, all of them in one call."""
        mine: list[Tensor] = list(self.encoder.parameters())
        theirs: list[Tensor] = list(encoder.parameters())
        torch._foreach_lerp_(mine, theirs, 1 - momentum)
