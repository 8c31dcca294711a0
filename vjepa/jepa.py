"""The training algorithm of the V-JEPA family as a LightningModule.

Encode what is visible, predict the representation of what is hidden, compare in latent space.
B clips, T frames, H W pixels, C channels; N tokens, K kept as context, M to predict, D width.
"""

from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import pytorch_lightning as lightning
import torch
from torch import Tensor

from vjepa.gauges import collapse_gauges
from vjepa.loss import LossConfig, masked_prediction_loss, regulariser
from vjepa.masks import LONG_RANGE, SHORT_RANGE, MaskConfig, draw_masks
from vjepa.optim import OptimConfig, lr_schedule, make_optimizer, momentum_schedule, set_schedule, weight_decay_schedule
from vjepa.pixels import normalise
from vjepa.predictor import Predictor, PredictorConfig
from vjepa.targets import TargetEncoder, TeacherConfig
from vjepa.vit import Encoder, EncoderConfig


@dataclass(frozen=True)
class JepaConfig:
    """Everything that decides what is learned, but for the data."""

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    predictor: PredictorConfig = field(default_factory=PredictorConfig)
    masks: tuple[MaskConfig, ...] = (SHORT_RANGE, LONG_RANGE)
    loss: LossConfig = field(default_factory=LossConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    steps: int = 90_000  # optimiser steps of the whole run
    seed: int = 0
    gauges_every: int = 100  # optimiser steps between two readings of the collapse gauges

    def __post_init__(self) -> None:
        if not self.masks:
            raise ValueError("masks must name at least one kind of mask, got none")
        if self.steps < 1 or self.gauges_every < 1:
            raise ValueError(f"steps and gauges_every must be at least 1, got {self.steps} and {self.gauges_every}")

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> "JepaConfig":
        """The config that a checkpoint stores as plain data; TypeError where it has a field this version lacks."""
        return cls(
            encoder=EncoderConfig(**stored["encoder"]),
            predictor=PredictorConfig(**stored["predictor"]),
            masks=tuple(MaskConfig(**mask) for mask in stored["masks"]),
            loss=LossConfig(**stored["loss"]),
            teacher=TeacherConfig(**stored["teacher"]),
            optim=OptimConfig(**stored["optim"]),
            **{name: stored[name] for name in ("steps", "seed", "gauges_every")},
        )


class ClipBatch(Protocol):
    """What the module needs of a batch."""

    clips: Tensor  # uint8 [B, T, H, W, C]
    position: int  # samples that all ranks together have consumed once this batch is done


class JEPA(lightning.LightningModule):
    """Context encoder, predictor and moving-average target encoder, and the step that trains them."""

    def __init__(self, config: JepaConfig) -> None:
        super().__init__()
        self.config = config
        # Weights depend on the seed alone, whatever was drawn before; the caller's random state stays as it was.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.context_encoder = Encoder(config.encoder)
            self.predictor = Predictor(_with_mask_tokens(config.predictor, len(config.masks)), config.encoder)
        self.target_encoder = TargetEncoder(self.context_encoder)
        self.position = 0  # samples consumed by all ranks
        self.lr_at = lr_schedule(config.optim, config.steps)
        self.weight_decay_at = weight_decay_schedule(config.optim, config.steps)
        teacher = config.teacher
        self.momentum_at = momentum_schedule(
            teacher.momentum, teacher.final_momentum, config.steps, config.optim.stretch
        )

    def training_step(self, batch: ClipBatch, batch_index: int) -> Tensor:
        """One step of the algorithm: batch of B clips -> loss."""
        video = normalise(batch.clips)
        grid = self.context_encoder.patch_embed.grid(video)
        places = self._places(batch)
        target = self.target_encoder(video)
        losses, penalties = [], []
        for kind, mask_config in enumerate(self.config.masks):
            masks = draw_masks(mask_config, grid, places, self.config.seed, kind)
            context = self.context_encoder(video, masks.context)
            prediction = self.predictor(context, masks.context, masks.target, kind, grid)
            losses.append(masked_prediction_loss(prediction, target, masks.target, self.config.loss.power))
            penalties.append(regulariser(self.config.loss, context, masks.context, target.shape[1]))
        prediction_error, penalty = torch.stack(losses).mean(), torch.stack(penalties).mean()
        loss = prediction_error + penalty
        self._report(loss, prediction_error, penalty, target)
        self.position = batch.position
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW over context encoder and predictor."""
        return make_optimizer(self.config.optim, self.context_encoder, self.predictor)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Set the step's schedule; limit the gradient norm of each module by itself."""
        step, optim = self.global_step, self.config.optim
        set_schedule(optimizer, self.lr_at(step), self.weight_decay_at(step))
        if optim.clip and not (optim.clip_after_warmup and step < optim.warmup_steps):
            for module in (self.context_encoder, self.predictor):
                torch.nn.utils.clip_grad_norm_(module.parameters(), optim.clip)

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        """The optimiser's step, then the teacher's."""
        momentum = self.momentum_at(self.global_step)
        super().optimizer_step(*arguments, **options)
        self.target_encoder.update(self.context_encoder, momentum)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the config as plain data, and the position in the data."""
        checkpoint["config"] = asdict(self.config)
        checkpoint["position"] = self.position

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the position in the data back."""
        self.position = checkpoint["position"]

    def _places(self, batch: ClipBatch) -> Tensor:
        """Place of each of this rank's clips in the run's sequence of samples: int64 [B]."""
        size, ranks = len(batch.clips), self.trainer.world_size if self._trainer else 1
        first = batch.position - size * (ranks - self.global_rank)
        return torch.arange(first, first + size, device=batch.clips.device)

    def _report(self, loss: Tensor, prediction_error: Tensor, penalty: Tensor, target: Tensor) -> None:
        step = self.global_step
        values: dict[str, Tensor | float] = {
            "loss": loss.detach(),
            "loss/prediction": prediction_error.detach(),
            "loss/regulariser": penalty.detach(),
            "schedule/lr": self.lr_at(step),
            "schedule/weight_decay": self.weight_decay_at(step),
            "schedule/momentum": self.momentum_at(step),
        }
        self.log_dict(values, batch_size=len(target))
        if step % self.config.gauges_every == 0:
            gauges = {f"gauges/{name}": value for name, value in collapse_gauges(target).items()}
            self.log_dict(gauges, batch_size=len(target))


def _with_mask_tokens(config: PredictorConfig, kinds: int) -> PredictorConfig:
    """The predictor's config with a mask token for each kind of mask; ValueError where it asks for fewer."""
    if config.mask_tokens and config.mask_tokens < kinds:
        raise ValueError(
            f"predictor.mask_tokens must be 0 or at least the {kinds} kinds of masks, got {config.mask_tokens}"
        )
    return PredictorConfig(**{**asdict(config), "mask_tokens": config.mask_tokens or kinds})
