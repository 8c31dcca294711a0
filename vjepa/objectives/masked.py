"""Predict what is hidden: V-JEPA's objective, whatever the source of the targets.

B clips, N tokens, K kept as context, M to predict, D width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vjepa.encoder import gather_tokens
from vjepa.loss import prediction_loss
from vjepa.masks import draw_all
from vjepa.objectives.objective import Moment, Outcome, Prediction, summarise

if TYPE_CHECKING:
    from vjepa.jepa import JEPA


def predict_masked(model: JEPA, video: Tensor, moment: Moment) -> Outcome:
    """One step of the algorithm for video [B, C, T, H, W] (V-JEPA 1, section 3)."""
    assert model.predictor is not None
    grid = model.context_encoder.patch_embed.grid(video)
    target = model.target_encoder(video, model.context_encoder)
    masks = draw_all(model.config.masks.values(), grid, moment.places, model.config.seed)
    lengths = [mask.context.shape[1] for mask in masks]
    context = model.context_encoder(video, torch.cat([mask.context for mask in masks], 1), lengths)
    hidden = model.predictor.hidden(context, masks, grid)
    predictions, penalties = [], []
    for name, mask, visible, prediction in zip(
        model.config.masks, masks, context.split(lengths, 1), hidden, strict=True
    ):
        loss = prediction_loss(prediction, gather_tokens(target, mask.target), model.config.loss.power)
        penalties.append(model.regulariser(visible, mask.context, target.shape[1], moment.position))
        predictions.append(Prediction(name, mask.context, mask.target, visible, prediction, loss))
    return summarise(predictions, penalties, grid, target)
