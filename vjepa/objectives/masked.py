"""Predict the hidden tokens: V-JEPA's objective, for any target source.

B clips, N tokens, K context tokens, M target tokens, D width.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from vjepa.batch import ClipGroup, is_image
from vjepa.config import JepaConfig
from vjepa.encoder import EncoderConfig, build_encoder, encode_selections
from vjepa.flops import trained_encoder_flops, transformer_flops
from vjepa.latent import Posterior, normal_numbers
from vjepa.loss import prediction_loss
from vjepa.masks import Masks, draw_all, draw_masks
from vjepa.memory import (
    FULL,
    Activations,
    Transformer,
    norm_bytes,
    target_encoder_bytes,
    trained_encoder_bytes,
    video_bytes,
)
from vjepa.objectives.objective import MaskPrediction, Objective, StepContext, StepOutput, summarise
from vjepa.patches import gather_tokens
from vjepa.positions import Grid
from vjepa.predictor import Predictor, PredictorConfig, build_predictor
from vjepa.registry import ENCODERS, OBJECTIVES, TARGETS
from vjepa.regularise import Regulariser, motion_weights
from vjepa.targets import make_targets

MEASURED = 24  # clips drawn to find the lengths of masks; more would find shorter ones where they follow the batch


@OBJECTIVES.register("masked")
class MaskedObjective(Objective):
    """V-JEPA 1 and 2: a narrow predictor predicts the target encoder's features of the hidden tokens."""

    draws_masks = True
    predictor: Predictor

    def __init__(self, config: JepaConfig, frozen: EncoderConfig | None) -> None:
        super().__init__()
        self.config, self.levels = config, self.choose_levels(config)
        self.context_encoder = build_encoder(config.encoder)
        self.target_encoder = make_targets(config.teacher, self.context_encoder, self.levels, frozen)
        kinds = max(len(config.masks), len(config.image_masks))
        predictor = with_mask_tokens(config.predictor, kinds)
        self.predictor = build_predictor(predictor, config.encoder, len(self.levels), self.target_encoder.width)
        used = kinds if predictor.mask_token == "mask" else max(1, len(predictor.token_frames))
        for spare in list(self.predictor.mask_tokens)[used:]:
            spare.requires_grad_(False)  # it gets no gradient, which DDP would wait for
        self.regulariser = Regulariser(config.regulariser, config.encoder.shape.width)

    @classmethod
    def choose_levels(cls, config: JepaConfig) -> tuple[int, ...]:
        """Blocks whose features the predictor takes."""
        return (-1,)

    def step(self, batch: ClipGroup, context: StepContext) -> StepOutput:
        """One step of the algorithm for B clips (V-JEPA 1, section 3)."""
        config, video = self.config, batch.video
        grid = self.context_encoder.token_grid(video)
        target = self.target_encoder(video, self.context_encoder)
        kinds, image = config.masks_of(video), is_image(video)
        masks = draw_all(kinds, grid, context.samples, config.seed)
        visible = encode_selections(self.context_encoder, video, [mask.context for mask in masks])
        found = self.infer_latents(target, visible, masks, grid)
        latents = None if found is None else self.draw_latents(found, context)
        hidden = self.predictor.hidden(torch.cat(visible, 1), masks, grid, latents, image)
        moving = self.weigh_motion(video)
        predictions, penalties = [], []
        for name, mask, seen, prediction in zip(kinds, masks, visible, hidden, strict=True):
            loss = prediction_loss(prediction, gather_tokens(target, mask.target), config.loss.power)
            penalties.append(self.penalise(seen, mask.context, grid, moving, context))
            predictions.append(MaskPrediction(name, mask.context, mask.target, seen, prediction, loss))
        output = summarise(predictions, penalties, grid, target)
        return output if found is None else self.limit_latents(output, found)

    def infer_latents(
        self, target: Tensor, visible: list[Tensor], masks: list[Masks], grid: Grid
    ) -> list[Posterior] | None:
        """The distribution of the predictor's variable for each mask, or None without one."""
        if self.predictor.variable is None:
            return None
        return self.predictor.infer(target, torch.cat(visible, 1), masks, grid)

    def draw_latents(self, found: list[Posterior], context: StepContext) -> list[Tensor]:
        """z for each mask [B, Z]; the noise depends only on the seed and each clip's stream position."""
        variable = self.predictor.variable
        assert variable is not None
        return [
            variable.draw(one, normal_numbers(context.samples, self.config.seed, kind, variable.dims))
            for kind, one in enumerate(found)
        ]

    def limit_latents(self, output: StepOutput, found: list[Posterior]) -> StepOutput:
        """Add the penalty on the variable to the loss, and log it with the KL divergence in nats."""
        variable = self.predictor.variable
        assert variable is not None
        penalty = torch.stack([variable.penalty(one) for one in found]).mean()
        kl = torch.stack([one.kl().mean() for one in found]).mean()
        output.loss = output.loss + penalty
        output.parts |= {"latent": penalty.detach(), "latent_kl": kl.detach()}
        return output

    def weigh_motion(self, video: Tensor) -> Tensor | None:
        """Token weights for the regulariser: [B, N], or None for equal weights."""
        if not self.config.regulariser.motion or is_image(video):
            return None
        return motion_weights(video, self.config.encoder.tubelet, self.config.encoder.patch)

    def penalise(
        self, features: Tensor, index: Tensor, grid: Grid, moving: Tensor | None, context: StepContext
    ) -> Tensor:
        """Regulariser terms of context features [B, K, D] at token indices index [B, K] -> scalar."""
        weights = None if moving is None else moving.gather(1, index)
        tokens = math.prod(grid)
        penalty: Tensor = self.regulariser(features, index, tokens, context.position, weights=weights, grid=grid)
        return penalty

    def trained_modules(self) -> dict[str, nn.Module]:
        """Encoder, predictor and, if present, the regulariser's expander."""
        return {
            "context_encoder": self.context_encoder,
            "predictor": self.predictor,
            "expander": self.regulariser.expander,
        }

    @classmethod
    def flops(cls, config: JepaConfig, clips: int) -> float:
        """Targets: forward over all tokens. Encoder and predictor: forward and backward for each mask."""
        return count_prediction(config, clips, levels=1, visible=False)

    @classmethod
    def activations(cls, config: JepaConfig, clips: int, product: int) -> Activations | None:
        """See `Objective`."""
        return predicted_bytes(config, clips, product, levels=1, visible=False)

    @classmethod
    def follows_device_batch(cls, config: JepaConfig) -> bool:
        """See `Objective`; masks truncated to the shortest also depend on the device's batch."""
        return super().follows_device_batch(config) or any(
            mask.follows_batch for mask in [*config.masks.values(), *config.image_masks.values()]
        )


def with_mask_tokens(config: PredictorConfig, kinds: int) -> PredictorConfig:
    """The predictor's config with enough mask tokens; ValueError if it sets fewer.

    If the masks of a clip share a token there are as many all the same, because V-JEPA 2's files have them.
    """
    shared = config.mask_token == "clip"
    needed = max(1, len(config.token_frames)) if shared else kinds
    if config.mask_tokens is not None and config.mask_tokens < needed:
        what = "number of predictor.token_frames" if shared else "number of masks"
        raise ValueError(
            f"predictor.mask_tokens must be null or at least the {what} ({needed}), got {config.mask_tokens}"
        )
    return replace(config, mask_tokens=config.mask_tokens or kinds * max(1, len(config.token_frames)))


def predicted_bytes(config: JepaConfig, clips: int, product: int, levels: int, visible: bool) -> Activations | None:
    """Memory of a step that predicts `levels` levels at hidden and, with `visible`, at visible tokens.

    None for an encoder whose blocks are not known, and for a predictor with a latent variable.
    """
    encoder, predictor = config.encoder, config.predictor
    if not hasattr(ENCODERS.find(encoder.kind), "layers") or predictor.latent.dims is not None:
        return None
    pairs = [
        draw_masks(mask, encoder.grid, torch.arange(min(clips, MEASURED)), config.seed, kind)
        for kind, mask in enumerate(config.masks.values())
    ]
    contexts = [masks.context.shape[1] for masks in pairs]
    hidden = [masks.target.shape[1] for masks in pairs]
    segments = [sum(lengths) for lengths in zip(contexts, hidden, strict=True)]
    predicted = sum(segments if visible else hidden)
    heads = predictor.heads or encoder.shape.heads
    rotary = encoder.positions == "rotary"
    blocks = Transformer(
        predictor.width, round(predictor.width * predictor.mlp_ratio), heads, predictor.depth, segments, rotary,
        product, product if rotary else FULL,
    )  # fmt: skip
    width, context = encoder.shape.width, sum(contexts)
    target_width = TARGETS.find(config.teacher.source).width_of(encoder, levels, config.frozen)
    embedded = context * width * product if levels == 1 else context * (levels + 2) * width * product
    # The norm and projection of what is predicted, and |difference| to the targets in fp32.
    ends = predicted * (norm_bytes(predictor.width) + predictor.width * product + target_width * FULL)
    around = Activations(clips * (embedded + ends), clips * predicted * target_width * product)
    teacher = encoder if config.frozen is None else replace(config.frozen, frames=encoder.frames, crop=encoder.crop)
    targets = target_encoder_bytes(teacher, clips, product, levels)
    trained = trained_encoder_bytes(encoder, contexts, clips, product, levels)
    return video_bytes(encoder, clips) + targets + trained + blocks.count(clips, encoder.kept) + around


def count_prediction(config: JepaConfig, clips: int, levels: int, visible: bool) -> float:
    """FLOPs per clip of a step that predicts `levels` levels at hidden and, with `visible`, at visible tokens."""
    encoder, predictor = config.encoder, config.predictor
    source = TARGETS.find(config.teacher.source)
    target_width = source.width_of(encoder, levels, config.frozen)
    total: float = source.flops(encoder, config.frozen)
    for kind, mask in enumerate(config.masks.values()):
        masks = draw_masks(mask, encoder.grid, torch.arange(clips), config.seed, kind)
        context, target = masks.context.shape[1], masks.target.shape[1]
        predicted = context + target if visible else target
        blocks = transformer_flops(context + target, predictor.width, predictor.depth, predictor.mlp_ratio)
        width = encoder.shape.width
        embed = predictor.width if levels == 1 else levels * width + predictor.width  # one layer, or two
        projections = 2 * (context * width * embed + predicted * target_width * predictor.width)
        inference = (
            0 if predictor.latent.dims is None else target * predictor.width * (target_width + 4 * predictor.width)
        )
        total += trained_encoder_flops(encoder, context) + 3 * (blocks + projections + 2 * inference)
    return total
