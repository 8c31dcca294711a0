"""The training algorithm of the V-JEPA family as a LightningModule.

Encode what is visible, predict the representation of what is hidden, compare in latent space.
B clips, T frames, H W pixels, C channels; N tokens, K kept as context, M to predict, D width.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, Protocol

import pytorch_lightning as lightning
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from vjepa.blocks import compile_blocks
from vjepa.encoder import Encoder, EncoderConfig, choose_levels
from vjepa.guard import Guard
from vjepa.loss import LossConfig
from vjepa.masks import LONG_RANGE, SHORT_RANGE, MaskConfig
from vjepa.objectives.dense import DenseConfig, predict_dense
from vjepa.objectives.masked import predict_masked
from vjepa.objectives.objective import Moment, Outcome
from vjepa.objectives.views import ViewsConfig, match_views
from vjepa.optim import OptimConfig, lr_schedule, make_optimizer, momentum_schedule, set_schedule, weight_decay_schedule
from vjepa.pixels import normalise
from vjepa.predictor import Predictor, PredictorConfig
from vjepa.regularise import Expander, Regulariser, RegulariserConfig
from vjepa.targets import TargetEncoder, TeacherConfig, make_targets

ObjectiveName = Literal["masked", "dense", "views"]
OBJECTIVES: dict[ObjectiveName, Callable[["JEPA", Tensor, Moment], Outcome]] = {
    "masked": predict_masked,
    "dense": predict_dense,
    "views": match_views,
}


@dataclass(frozen=True)
class JepaConfig:
    """Everything that decides what is learned, but for the data."""

    objective: ObjectiveName = "masked"
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    predictor: PredictorConfig = field(default_factory=PredictorConfig)
    masks: dict[str, MaskConfig] = field(default_factory=lambda: {"short_range": SHORT_RANGE, "long_range": LONG_RANGE})
    loss: LossConfig = field(default_factory=LossConfig)
    dense: DenseConfig = field(default_factory=DenseConfig)
    views: ViewsConfig = field(default_factory=ViewsConfig)
    regulariser: RegulariserConfig = field(default_factory=RegulariserConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    frozen: EncoderConfig | None = None  # architecture of a frozen teacher; None: the encoder's
    steps: int = 90_000  # optimiser steps of the whole run
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.masks:
            raise ValueError("masks must name at least one kind of mask, got none")
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if self.objective == "dense" and self.teacher.source == "pixels":
            raise ValueError("objective=dense compares levels of an encoder, teacher.source=pixels has none")
        if self.objective == "views" and self.regulariser.expander:
            raise ValueError(
                "regulariser.expander must be 0 with objective=views: views.projection stands in its place"
            )

    @property
    def follows_device_batch(self) -> bool:
        """Does what is learned depend on the number of clips that a device holds, not only on that of a step?"""
        lengths = self.objective != "views" and any(mask.follows_batch for mask in self.masks.values())
        return self.regulariser.active or self.objective == "views" or lengths

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> "JepaConfig":
        """The config that a checkpoint stores as plain data; TypeError where it has a field this version lacks."""
        kinds = {
            "encoder": EncoderConfig,
            "predictor": PredictorConfig,
            "loss": LossConfig,
            "dense": DenseConfig,
            "views": ViewsConfig,
            "regulariser": RegulariserConfig,
            "teacher": TeacherConfig,
            "optim": OptimConfig,
        }
        values = {name: kinds[name](**value) if name in kinds else value for name, value in stored.items()}
        values["masks"] = {name: MaskConfig(**mask) for name, mask in stored["masks"].items()}
        values["frozen"] = EncoderConfig(**stored["frozen"]) if stored["frozen"] else None
        return cls(**values)


class ClipBatch(Protocol):
    """What the module needs of a batch."""

    clips: Tensor  # uint8 [B, T, H, W, C]
    position: int  # samples that all ranks together have consumed once this batch is done


class JEPA(lightning.LightningModule):
    """Context encoder, predictor and targets, and the step that trains them."""

    def __init__(self, config: JepaConfig, teacher: Encoder | None = None) -> None:
        """Fresh weights from the seed alone; `teacher` is the frozen encoder of teacher.source=frozen."""
        super().__init__()
        if teacher is not None:
            config = replace(config, frozen=teacher.config)
        self.config = config
        self.levels = choose_levels(config.encoder.depth, config.dense.levels) if config.objective == "dense" else (-1,)
        # Weights depend on the seed alone, whatever was drawn before; the caller's random state stays as it was.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self._build()
        if teacher is not None:
            self.target_encoder.load_state_dict(
                {f"encoder.{name}": value for name, value in teacher.state_dict().items()}
            )
        self.guard = Guard(config.optim.spike)
        self.position = 0  # samples consumed by all ranks
        self.watching = False  # set before a step: leave behind what it worked out
        self.watched: Outcome | None = None
        self.watched_video: Tensor | None = None  # normalised [B, C, T, H, W]
        self.lr_at = lr_schedule(config.optim, config.steps)
        self.weight_decay_at = weight_decay_schedule(config.optim, config.steps)
        momenta = config.teacher.momenta(config.steps)
        self.momentum_at = momentum_schedule(*momenta, config.steps, config.optim.stretch)

    def _build(self) -> None:
        config, encoder = self.config, self.config.encoder
        self.context_encoder = Encoder(encoder)
        predictor = _with_mask_tokens(config.predictor, len(config.masks))
        self.predictor: Predictor | None = None
        self.projector: Expander | None = None
        if config.objective == "views":
            self.projector = Expander(encoder.width, config.views.projection)
            self.target_encoder = make_targets(config.teacher, self.context_encoder, frozen=config.frozen)
            self.regulariser = Regulariser(config.regulariser, config.views.projection)
            return
        self.target_encoder = make_targets(config.teacher, self.context_encoder, self.levels, config.frozen)
        self.predictor = Predictor(predictor, encoder, len(self.levels), self.target_encoder.width)
        for spare in list(self.predictor.mask_tokens)[len(config.masks) :]:
            spare.requires_grad_(False)  # no gradient reaches it: DDP would wait for one
        self.regulariser = Regulariser(config.regulariser, encoder.width)

    def training_step(self, batch: ClipBatch, batch_index: int) -> Tensor:
        """One step of the objective: batch of B clips -> loss. What it does stands in vjepa/objectives/."""
        video = normalise(batch.clips)
        moment = Moment(self._places(batch), batch.position, self.global_step / self.config.steps)
        outcome = OBJECTIVES[self.config.objective](self, video, moment)
        self._report(outcome, len(video))
        if self.watching:
            self.watched, self.watched_video = outcome.detach(), video
        self.position = batch.position
        return outcome.loss

    @property
    def trained_encoder(self) -> Encoder:
        """The encoder to evaluate and export: the moving average where there is one, else the one that is trained."""
        average = self.config.teacher.source == "average" and isinstance(self.target_encoder, TargetEncoder)
        return self.target_encoder.encoder if average else self.context_encoder  # type: ignore[return-value]

    def trained_modules(self) -> dict[str, nn.Module]:
        """What the optimiser moves, by name."""
        modules = {
            "context_encoder": self.context_encoder,
            "predictor": self.predictor,
            "projector": self.projector,
            "expander": self.regulariser.expander,
        }
        return {name: module for name, module in modules.items() if module is not None and list(module.parameters())}

    def compile_blocks(self) -> None:
        """Compile the transformer blocks, one by one, for any number of tokens (torch.compile)."""
        for module in (self.context_encoder, self.predictor, self.target_encoder):
            if module is not None:
                compile_blocks(module)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW over what is trained."""
        return make_optimizer(self.config.optim, *self.trained_modules().values())

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Set the step's schedule; limit the gradient norm of each module by itself; skip an update that does harm."""
        step, optim = self.global_step, self.config.optim
        set_schedule(optimizer, self.lr_at(step), self.weight_decay_at(step))
        norms = {}
        for name, module in self.trained_modules().items():
            gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
            norms[name] = get_total_norm(gradients)
            if optim.clip and not (optim.clip_after_warmup and step < optim.warmup(self.config.steps)):
                clip_grads_with_norm_(module.parameters(), optim.clip, norms[name])
        optimizer.found_inf = self.guard.judge(list(norms.values()))  # type: ignore[attr-defined]
        self.log_dict({f"grad_norm/{name}": norm for name, norm in norms.items()})

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

    def _report(self, outcome: Outcome, clips: int) -> None:
        step = self.global_step
        values: dict[str, Tensor] = {
            "loss": outcome.loss.detach(),
            **{f"loss/{name}": value for name, value in outcome.parts.items()},
            "schedule/lr": torch.tensor(
                self.lr_at(step)
            ),  # tensors: a number would be copied to the device, and waited for
            "schedule/weight_decay": torch.tensor(self.weight_decay_at(step)),
            "schedule/momentum": torch.tensor(self.momentum_at(step)),
        }
        self.log_dict(values, batch_size=clips)


def _with_mask_tokens(config: PredictorConfig, kinds: int) -> PredictorConfig:
    """The predictor's config with a mask token for each kind of mask; ValueError where it asks for fewer."""
    if config.mask_tokens and config.mask_tokens < kinds:
        raise ValueError(
            f"predictor.mask_tokens must be 0 or at least the {kinds} kinds of masks, got {config.mask_tokens}"
        )
    return replace(config, mask_tokens=config.mask_tokens or kinds)
