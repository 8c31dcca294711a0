"""Predict hidden and visible tokens at several depths: V-JEPA 2.1's dense objective.

The context encoder's features of several levels (equally spaced blocks) go into the predictor together; the targets are
the same levels of the target encoder. B clips, N tokens, K kept as context, M to predict, D width, G levels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vjepa.encoder import gather_tokens
from vjepa.loss import prediction_loss
from vjepa.masks import draw_all
from vjepa.objectives.objective import Moment, Outcome, Prediction, summarise
from vjepa.positions import Grid

if TYPE_CHECKING:
    from vjepa.jepa import JEPA


@dataclass(frozen=True)
class DenseConfig:
    """The dense objective; the defaults are V-JEPA 2.1's, the ramp as shares of a run of 120k steps."""

    levels: int = 4  # equally spaced blocks, the last among them
    visible: float = 0.5  # weight of the visible tokens' loss once the ramp is over
    ramp: tuple[float, float] = (0.125, 0.25)  # shares of the run between which that weight grows from 0

    def __post_init__(self) -> None:
        if self.levels < 1 or self.visible < 0:
            raise ValueError(f"dense needs levels >= 1 and visible >= 0, got {self.levels} and {self.visible}")
        if not 0 <= self.ramp[0] <= self.ramp[1] <= 1:
            raise ValueError(f"dense.ramp must satisfy 0 <= begin <= end <= 1, got {list(self.ramp)}")

    def visible_weight(self, progress: float) -> float:
        """Weight of the visible tokens' loss once `progress` of the run is done."""
        begin, end = self.ramp
        return self.visible * min(1.0, max(0.0, (progress - begin) / max(end - begin, 1e-9)))


def predict_dense(model: JEPA, video: Tensor, moment: Moment) -> Outcome:
    """One step for video [B, C, T, H, W] (V-JEPA 2.1): masked tokens, and visible ones by their distance to a mask."""
    assert model.predictor is not None
    config, power = model.config.dense, model.config.loss.power
    weight = config.visible_weight(moment.progress)
    grid = model.context_encoder.patch_embed.grid(video)
    target = model.target_encoder(video, model.context_encoder)
    masks = draw_all(model.config.masks.values(), grid, moment.places, model.config.seed)
    lengths = [mask.context.shape[1] for mask in masks]
    features = model.context_encoder.layers(
        video, model.levels, torch.cat([mask.context for mask in masks], 1), lengths
    )
    everywhere = model.predictor.everywhere(torch.cat(features, -1), masks, grid)
    predictions, penalties, visible = [], [], []
    for name, mask, context, predicted in zip(
        model.config.masks, masks, features[-1].split(lengths, 1), everywhere, strict=True
    ):
        seen, hidden = predicted.split([half.shape[1] for half in mask], 1)
        loss = prediction_loss(hidden, gather_tokens(target, mask.target), power)
        nearness = near_the_mask(mask.context, mask.target, grid)
        visible.append(weight * prediction_loss(seen, gather_tokens(target, mask.context), power, nearness))
        penalties.append(model.regulariser(context, mask.context, target.shape[1], moment.position))
        predictions.append(Prediction(name, mask.context, mask.target, context, hidden, loss))
    outcome = summarise(predictions, penalties, grid, target)
    extra = torch.stack(visible).mean()
    outcome.parts["visible"] = extra.detach()
    outcome.loss = outcome.loss + extra
    return outcome


def near_the_mask(context: Tensor, target: Tensor, grid: Grid) -> Tensor:
    """1 / sqrt(distance) of each visible token to the nearest masked one, in cells of the grid (V-JEPA 2.1).

    context [B, K] and target [B, M] are token indices -> [B, K].
    """
    nearest = torch.cdist(_places(context, grid), _places(target, grid)).amin(-1)
    return nearest.clamp(min=1).rsqrt()


def _places(index: Tensor, grid: Grid) -> Tensor:
    _, h, w = grid
    return torch.stack([index // (h * w), index // w % h, index % w], dim=-1).float()
