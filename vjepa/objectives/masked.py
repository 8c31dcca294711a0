"""Predict what is hidden: V-JEPA's objective, whatever the source of the targets.

B clips, N tokens, K kept as context, M to predict, D width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from vjepa.loss import prediction_loss
from vjepa.masks import draw_masks
from vjepa.outcome import Moment, Outcome, Prediction, summarise
from vjepa.vit import gather_tokens

if TYPE_CHECKING:
    from vjepa.jepa import JEPA


def predict_masked(model: JEPA, video: Tensor, moment: Moment) -> Outcome:
    """One step of the algorithm for video [B, C, T, H, W] (V-JEPA 1, section 3)."""
    assert model.predictor is not None
    grid = model.context_encoder.patch_embed.grid(video)
    target = model.target_encoder(video, model.context_encoder)
    predictions, penalties = [], []
    for kind, (name, mask_config) in enumerate(model.config.masks.items()):
        masks = draw_masks(mask_config, grid, moment.places, model.config.seed, kind)
        context = model.context_encoder(video, masks.context)
        prediction = model.predictor(context, masks.context, masks.target, kind, grid)
        loss = prediction_loss(prediction, gather_tokens(target, masks.target), model.config.loss.power)
        penalties.append(model.regulariser(context, masks.context, target.shape[1], moment.position))
        predictions.append(Prediction(name, masks.context, masks.target, context, prediction, loss))
    return summarise(predictions, penalties, grid, target)
