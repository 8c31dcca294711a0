"""Predict several target blocks of an image from one context, each by itself: I-JEPA (arXiv 2301.08243).

B images, N tokens, K context tokens, M tokens of a target, R targets, D width.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from vjepa.batch import ClipGroup, is_image
from vjepa.config import JepaConfig
from vjepa.encoder import EncoderConfig, encode_selections
from vjepa.flops import trained_encoder_flops, transformer_flops
from vjepa.loss import in_full_precision, prediction_loss
from vjepa.masks import MaskConfig
from vjepa.multiblock import draw_parts
from vjepa.objectives.masked import MaskedObjective
from vjepa.objectives.objective import MaskPrediction, StepContext, StepOutput, summarise
from vjepa.patches import gather_tokens
from vjepa.registry import MASKS, OBJECTIVES, TARGETS


@dataclass(frozen=True)
class IjepaOptions:
    """Options of I-JEPA's objective."""

    loss: Literal["smooth_l1", "power"] = (
        "smooth_l1"  # smooth_l1: the public code's; power: loss.power, where 2 is half the paper's squared distance
    )


@OBJECTIVES.register("ijepa")
class IjepaObjective(MaskedObjective):
    """I-JEPA: the predictor gets the context and the positions of one target at a time."""

    Options = IjepaOptions

    def __init__(self, config: JepaConfig, frozen: EncoderConfig | None) -> None:
        super().__init__(config, frozen)
        nn.init.trunc_normal_(self.predictor.mask_tokens[0], std=0.02)

    @classmethod
    def check(cls, config: JepaConfig) -> None:
        """Every mask must have targets of its own, and all of them share a mask token."""
        for name, mask in [*config.masks.items(), *config.image_masks.items()]:
            _check_mask(name, mask)
        if config.predictor.mask_token != "clip" or config.predictor.latent.dims is not None:
            raise ValueError(
                "objective=ijepa has one mask token for all targets and no latent variable: it needs "
                f"predictor.mask_token=clip and predictor.latent.dims=null, got {config.predictor.mask_token} and "
                f"{config.predictor.latent.dims}"
            )

    def step(self, batch: ClipGroup, context: StepContext) -> StepOutput:
        """One step for B images (or clips, whose blocks span all frames)."""
        config, video = self.config, batch.video
        grid = self.context_encoder.token_grid(video)
        target = self.target_encoder(video, self.context_encoder)
        kinds = config.masks_of(video)
        drawn = [
            draw_parts(mask, grid, context.samples, config.seed, kind, name)
            for kind, (name, mask) in enumerate(kinds.items())
        ]
        visible = encode_selections(self.context_encoder, video, [parts[0].context for parts in drawn])
        moving = self.weigh_motion(video)
        predictions, penalties = [], []
        for name, parts, seen in zip(kinds, drawn, visible, strict=True):
            hidden = self.predictor.hidden(seen.repeat(1, len(parts), 1), parts, grid, image=is_image(video))
            penalties.append(self.penalise(seen, parts[0].context, grid, moving, context))
            for number, (part, prediction) in enumerate(zip(parts, hidden, strict=True)):
                loss = self.distance(prediction, gather_tokens(target, part.target))
                predictions.append(
                    MaskPrediction(f"{name}_{number}", part.context, part.target, seen, prediction, loss)
                )
        return summarise(predictions, penalties, grid, target)

    def distance(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The loss between prediction and target [B, M, D] -> scalar."""
        if self.config.objective_options.loss == "power":
            return prediction_loss(prediction, target, self.config.loss.power)
        return functional.smooth_l1_loss(in_full_precision(prediction), in_full_precision(target))

    @classmethod
    def flops(cls, config: JepaConfig, clips: int) -> float:
        """Targets: forward over all tokens. Encoder: once for each mask; predictor: once for each target."""
        encoder, predictor, width = config.encoder, config.predictor, config.encoder.shape.width
        source = TARGETS.find(config.teacher.source)
        target_width = source.width_of(encoder, 1, config.frozen)
        total: float = source.flops(encoder, config.frozen)
        for kind, (name, mask) in enumerate(config.masks.items()):
            parts = draw_parts(mask, encoder.grid, torch.arange(clips), config.seed, kind, name)
            seen, predicted = parts[0].context.shape[1], parts[0].target.shape[1]
            blocks = transformer_flops(seen + predicted, predictor.width, predictor.depth, predictor.mlp_ratio)
            projections = 2 * predictor.width * (seen * width + predicted * target_width)
            total += trained_encoder_flops(encoder, seen) + 3 * len(parts) * (blocks + projections)
        return total


def _check_mask(name: str, mask: MaskConfig) -> None:
    if MASKS.find(mask.kind).divide is None:
        raise ValueError(
            f"masks.{name}.kind={mask.kind} has one target, but objective=ijepa predicts several, each by itself; set "
            f"masks.{name}.kind=multiblock"
        )
    if mask.fixed or not math.isclose(mask.max_temporal_keep, 1.0):
        raise ValueError(
            f"masks.{name}: with objective=ijepa, contexts are cut to the shortest of the device's batch; keep, "
            "predict and lengths_of_batch must be null, and max_temporal_keep 1"
        )
