"""What an objective is: the loss of a step and all that is trained for it.

An objective owns its options, the encoders, and its predictor or projector. The training algorithm around it
(`vjepa.jepa.JEPA`) owns optimiser, schedules, guard, teacher update and the position in the data, and knows no
objective by name. A new objective is one file that registers a class:

    @OBJECTIVES.register("mine")
    class MyObjective(Objective):
        Options = MyOptions        # a frozen dataclass; the section `mine:` of a config

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
from vjepa.positions import Grid
from vjepa.predictor import Predictor
from vjepa.targets import Targets


@dataclass(frozen=True)
class StepContext:
    """Where in the run a step is; every random draw is a function of the seed and of this."""

    samples: Tensor  # position of each clip in the run's stream of samples, int64 [B]
    position: int  # samples that all ranks together have consumed once this batch is done
    progress: float  # share of the run's steps that is done


@dataclass
class MaskPrediction:
    """One kind of mask in one step."""

    name: str  # of the mask in the config
    context_index: Tensor  # int64 [B, K]
    target_index: Tensor  # int64 [B, M]
    context: Tensor  # the context encoder's output [B, K, D]
    prediction: Tensor  # [B, M, width of a target]
    loss: Tensor  # scalar

    def detach(self) -> "MaskPrediction":
        """The same without the graph."""
        return replace(
            self, context=self.context.detach(), prediction=self.prediction.detach(), loss=self.loss.detach()
        )


@dataclass
class StepOutput:
    """One step; `loss` is what is minimised, everything else may be watched."""

    loss: Tensor  # scalar
    parts: dict[str, Tensor]  # what it is made of, by name, detached: prediction, regulariser, each kind of mask, ...
    grid: Grid
    targets: Tensor | None = None  # what is predicted, for all tokens [B, N, width]; None where nothing is
    predictions: list[MaskPrediction] = field(default_factory=list)  # one a kind of mask; none where none is made

    def detach(self) -> "StepOutput":
        """The same without the graph: what a watcher may keep."""
        return replace(self, loss=self.loss.detach(), predictions=[one.detach() for one in self.predictions])


@dataclass(frozen=True)
class NoOptions:
    """An objective without options of its own."""


class Objective(nn.Module, ABC):
    """The loss of a step, and the modules that are trained for it.

    `__init__(config, frozen)` builds them; weights must depend on torch's random state alone. `frozen` is the
    architecture of the encoder of teacher.source=frozen, or None; its weights come later.
    """

    Options: ClassVar[type] = NoOptions  # a frozen dataclass, each field with a default
    draws_masks: ClassVar[bool] = False  # does it use the config's masks?

    config: JepaConfig
    context_encoder: Any  # what is trained and exported; see vjepa.encoder.VideoEncoder
    target_encoder: Targets
    predictor: Predictor | None  # what an export may keep beside the encoder; None where there is none of that kind

    @abstractmethod
    def step(self, batch: ClipGroup, context: StepContext) -> StepOutput:
        """The loss of clips of one grid."""

    @abstractmethod
    def trained_modules(self) -> dict[str, nn.Module]:
        """What the optimiser moves, by name: each has a gradient norm and a limit of its own."""

    @classmethod
    def check(cls, config: JepaConfig) -> None:
        """Raise ValueError where the rest of the config does not go with this objective."""

    @classmethod
    @abstractmethod
    def flops(cls, config: JepaConfig, clips: int) -> float:
        """Floating-point operations of the matrix products of a step, forward and backward, for one of `clips` clips.

        Recomputed activations do not count: they are a cost, not work done.
        """

    @classmethod
    def follows_device_batch(cls, config: JepaConfig) -> bool:
        """Does what is learned depend on the number of clips that a device holds, not only on that of a step?"""
        return config.regulariser.active and not config.regulariser.over_ranks

    @property
    def trained_encoder(self) -> Any:
        """The encoder to evaluate and export: the moving average where there is one, else the one that is trained."""
        average = self.target_encoder.moving_average
        return self.context_encoder if average is None else average


def summarise(predictions: list[MaskPrediction], penalties: list[Tensor], grid: Grid, targets: Tensor) -> StepOutput:
    """The output of a step: losses and penalties, one of each a kind of mask, are averaged over the kinds."""
    error = torch.stack([one.loss for one in predictions]).mean()
    penalty = torch.stack(penalties).mean()
    parts = {"prediction": error.detach(), "regulariser": penalty.detach()}
    parts |= {one.name: one.loss.detach() for one in predictions}
    return StepOutput(error + penalty, parts, grid, targets, predictions)


def build_objective(config: JepaConfig, frozen: EncoderConfig | None) -> Objective:
    """The objective that the config names, with fresh weights from the seed alone."""
    with torch.random.fork_rng(devices=[]):  # the caller's random state stays as it was
        torch.manual_seed(config.seed)
        objective: Objective = config.objective_class(config, frozen)
    return objective
