"""Predict hidden and visible tokens at several depths: V-JEPA 2.1's dense objective.

The predictor takes the context encoder's features from several levels (blocks); the targets are the same levels of the
target encoder. B clips, N tokens, K context tokens, M target tokens, D width, G levels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vjepa.batch import ClipGroup, is_image
from vjepa.config import JepaConfig
from vjepa.encoder import encode_levels, levels_of
from vjepa.loss import prediction_loss
from vjepa.masks import draw_all
from vjepa.memory import Activations
from vjepa.objectives.masked import MaskedObjective, count_prediction, predicted_bytes
from vjepa.objectives.objective import MaskPrediction, StepContext, StepOutput, summarise
from vjepa.patches import gather_tokens
from vjepa.positions import Grid
from vjepa.registry import OBJECTIVES, TARGETS


@dataclass(frozen=True)
class DenseOptions:
    """Options of the dense objective; the defaults are V-JEPA 2.1's, with the ramp as fractions of its 120k steps."""

    levels: int = 4  # blocks, including the last: those of the encoder's kind, else equally spaced
    visible: float = 0.5  # weight of the visible tokens' loss after the ramp
    ramp: tuple[float, float] = (0.125, 0.25)  # fractions of the run between which that weight grows from 0
    distance: bool = True  # divide a visible token's loss by the root of its distance to the nearest hidden token

    def __post_init__(self) -> None:
        if self.levels < 1 or self.visible < 0:
            raise ValueError(f"dense needs levels >= 1 and visible >= 0, got {self.levels} and {self.visible}")
        if not 0 <= self.ramp[0] <= self.ramp[1] <= 1:
            raise ValueError(f"dense.ramp must satisfy 0 <= begin <= end <= 1, got {list(self.ramp)}")

    def visible_weight(self, progress: float) -> float:
        """Weight of the visible tokens' loss after the fraction `progress` of the run."""
        begin, end = self.ramp
        if progress >= end:
            return self.visible
        return self.visible * min(1.0, max(0.0, (progress - begin) / max(end - begin, 1e-9)))


@OBJECTIVES.register("dense")
class DenseObjective(MaskedObjective):
    """V-JEPA 2.1: predict masked tokens, and visible ones weighted by their distance to the mask."""

    Options = DenseOptions

    @classmethod
    def choose_levels(cls, config: JepaConfig) -> tuple[int, ...]:
        """The encoder's levels, including the last."""
        return levels_of(config.encoder, config.objective_options.levels)

    @classmethod
    def check(cls, config: JepaConfig) -> None:
        """The targets and the encoder must have the levels to compare."""
        if not TARGETS.find(config.teacher.source).has_levels:
            raise ValueError(
                f"objective=dense compares encoder levels, but teacher.source={config.teacher.source} has none"
            )
        if config.predictor.latent.dims is not None:
            raise ValueError(
                f"predictor.latent.dims must be null with objective=dense, which has no latent variable, got "
                f"{config.predictor.latent.dims}; objective=masked has one"
            )
        depth = config.encoder.shape.depth
        if config.objective_options.levels > depth:
            raise ValueError(
                f"dense.levels must be at most the encoder's {depth} blocks, got {config.objective_options.levels}"
            )
        cls.choose_levels(config)  # says which levels the encoder's kind has

    def step(self, batch: ClipGroup, context: StepContext) -> StepOutput:
        """One step for B clips (V-JEPA 2.1)."""
        config, video, power = self.config, batch.video, self.config.loss.power
        weight = config.objective_options.visible_weight(context.progress)
        grid = self.context_encoder.token_grid(video)
        target = self.target_encoder(video, self.context_encoder)
        kinds = config.masks_of(video)
        masks = draw_all(kinds, grid, context.samples, config.seed)
        features = encode_levels(self.context_encoder, video, [mask.context for mask in masks], self.levels)
        joined = torch.cat([torch.cat(levels, -1) for levels in features], 1)
        everywhere = self.predictor.everywhere(joined, masks, grid, is_image(video))
        moving = self.weigh_motion(video)
        predictions, penalties, visible = [], [], []
        for name, mask, levels, predicted in zip(kinds, masks, features, everywhere, strict=True):
            seen, hidden = predicted.split([half.shape[1] for half in mask], 1)
            loss = prediction_loss(hidden, gather_tokens(target, mask.target), power)
            weighted = config.objective_options.distance
            nearness = near_the_mask(mask.context, mask.target, grid) if weighted else None
            visible.append(weight * prediction_loss(seen, gather_tokens(target, mask.context), power, nearness))
            penalties.append(self.penalise(levels[-1], mask.context, grid, moving, context))
            predictions.append(MaskPrediction(name, mask.context, mask.target, levels[-1], hidden, loss))
        output = summarise(predictions, penalties, grid, target)
        extra = torch.stack(visible).mean()
        output.parts["visible"] = extra.detach()
        output.loss = output.loss + extra
        return output

    @classmethod
    def flops(cls, config: JepaConfig, clips: int) -> float:
        """As for `masked`, with several levels and predictions of the visible tokens as well."""
        return count_prediction(config, clips, config.objective_options.levels, visible=True)

    @classmethod
    def activations(cls, config: JepaConfig, clips: int, product: int) -> Activations | None:
        """See `Objective`."""
        return predicted_bytes(config, clips, product, config.objective_options.levels, visible=True)


def near_the_mask(context: Tensor, target: Tensor, grid: Grid) -> Tensor:
    """1 / sqrt(distance from each visible token to the nearest masked one), in grid cells (V-JEPA 2.1).

    context [B, K] and target [B, M] are token indices -> [B, K].
    """
    nearest = torch.cdist(_coordinates(context, grid), _coordinates(target, grid)).amin(-1)
    return nearest.clamp(min=1).rsqrt()


def _coordinates(index: Tensor, grid: Grid) -> Tensor:
    _, h, w = grid
    return torch.stack([index // (h * w), index // w % h, index % w], dim=-1).float()
