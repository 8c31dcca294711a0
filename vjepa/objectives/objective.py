"""The interface of an objective: the loss of a step and the modules trained for it.

An objective owns its options, the encoders, and its predictor or projector. The training module (`vjepa.jepa.JEPA`)
owns optimiser, schedules, guard, teacher update and stream position, and knows no objective by name. A new objective is
one file that registers a class:

    @OBJECTIVES.register("mine")
    class MyObjective(Objective):
        Options = MyOptions        # a frozen dataclass: the config section `mine:`

B clips, K context tokens, M target tokens, N tokens of the grid, D width.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vjepa.batch import ClipGroup
from vjepa.config import JepaConfig
from vjepa.encoder import EncoderConfig
from vjepa.memory import Activations
from vjepa.positions import Grid
from vjepa.predictor import Predictor
from vjepa.targets import Targets


@dataclass(frozen=True)
class StepContext:
    """Where the step is in the run; every random draw depends only on this and the seed."""

    samples: Tensor  # stream position of each clip, int64 [B]
    position: int  # samples consumed by all ranks, including this batch
    progress: float  # fraction of the run's steps that is done


@dataclass
class MaskPrediction:
    """The prediction for one mask in one step."""

    name: str  # the mask's name in the config
    context_index: Tensor  # int64 [B, K]
    target_index: Tensor  # int64 [B, M]
    context: Tensor  # the context encoder's output [B, K, D]
    prediction: Tensor  # [B, M, target width]
    loss: Tensor  # scalar

    def detach(self) -> "MaskPrediction":
        """A copy detached from the autograd graph."""
        return replace(
            self, context=self.context.detach(), prediction=self.prediction.detach(), loss=self.loss.detach()
        )


@dataclass
class StepOutput:
    """The output of a step: `loss` is minimised, everything else is for logging."""

    loss: Tensor  # scalar
    parts: dict[str, Tensor]  # components of the loss by name, detached: prediction, regulariser, each mask, ...
    grid: Grid
    targets: Tensor | None = None  # targets of all tokens [B, N, width]; None if the objective has none
    predictions: list[MaskPrediction] = field(default_factory=list)  # one per mask; empty without masks

    def detach(self) -> "StepOutput":
        """A copy detached from the autograd graph, safe for callbacks to keep."""
        return replace(self, loss=self.loss.detach(), predictions=[one.detach() for one in self.predictions])


@dataclass(frozen=True)
class NoOptions:
    """Options of an objective that has none."""


class Objective(nn.Module, ABC):
    """The loss of a step, and the modules trained for it.

    `__init__(config, frozen)` builds them; initial weights must depend only on torch's random state. `frozen` is the
    architecture of the frozen teacher (teacher.source=frozen) or None; its weights are loaded later.
    """

    Options: ClassVar[type] = NoOptions  # a frozen dataclass whose fields all have defaults
    draws_masks: ClassVar[bool] = False  # does it use the config's masks?

    config: JepaConfig
    context_encoder: Any  # the encoder trained by gradients; see vjepa.encoder.VideoEncoder
    target_encoder: Targets
    predictor: Predictor | None  # can be exported with the encoder; None if the objective has no latent predictor

    @abstractmethod
    def step(self, batch: ClipGroup, context: StepContext) -> StepOutput:
        """The loss for clips that share one token grid."""

    @abstractmethod
    def trained_modules(self) -> dict[str, nn.Module]:
        """The modules to optimise, by name; gradient norms are measured and clipped per module."""

    @classmethod
    def check(cls, config: JepaConfig) -> None:
        """Raise ValueError if the rest of the config is incompatible with this objective."""

    @classmethod
    @abstractmethod
    def flops(cls, config: JepaConfig, clips: int) -> float:
        """FLOPs per clip of a step's matrix products, forward and backward, for a batch of `clips` clips.

        Recomputed activations are not counted: they are overhead, not useful work.
        """

    @classmethod
    def activations(cls, config: JepaConfig, clips: int, product: int) -> Activations | None:
        """Memory of a step of `clips` clips beside weights, gradients and optimiser state; None: not known.

        product: bytes of a number in a matrix product, 2 for bf16 and 4 for fp32.
        """
        return None

    @classmethod
    def follows_device_batch(cls, config: JepaConfig) -> bool:
        """Does what is learned depend on the batch size per device, not only on the global batch size?"""
        terms = config.regulariser
        return terms.active and (terms.balance or not terms.over_ranks)

    @property
    def trained_encoder(self) -> Any:
        """The encoder to evaluate and export: the EMA encoder if there is one, else the context encoder."""
        average = self.target_encoder.moving_average
        return self.context_encoder if average is None else average


def summarise(predictions: list[MaskPrediction], penalties: list[Tensor], grid: Grid, targets: Tensor) -> StepOutput:
    """The output of a step: losses and penalties, one of each per mask, averaged over the masks."""
    error = torch.stack([one.loss for one in predictions]).mean()
    penalty = torch.stack(penalties).mean()
    parts = {"prediction": error.detach(), "regulariser": penalty.detach()}
    parts |= {one.name: one.loss.detach() for one in predictions}
    return StepOutput(error + penalty, parts, grid, targets, predictions)


def build_objective(config: JepaConfig, frozen: EncoderConfig | None) -> Objective:
    """Build the objective that the config names; initial weights depend only on the seed."""
    with torch.random.fork_rng(devices=[]):  # leaves the caller's random state unchanged
        torch.manual_seed(config.seed)
        objective: Objective = config.objective_class(config, frozen)
    return objective
