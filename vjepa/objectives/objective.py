"""What one training step is given beside its clips, and what it worked out: the loss, its parts, what may be watched.

B clips, K context tokens, M target tokens, N tokens of the grid, D width.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from vjepa.positions import Grid


@dataclass(frozen=True)
class Moment:
    """Where in the run a batch is; every random draw is a function of the seed and of this."""

    places: Tensor  # of each clip in the run's sequence of samples, int64 [B]
    position: int  # samples that all ranks together have consumed once this batch is done
    progress: float  # share of the run's steps that is done


@dataclass
class Prediction:
    """One kind of mask in one step."""

    name: str  # of the mask in the config
    context_index: Tensor  # int64 [B, K]
    target_index: Tensor  # int64 [B, M]
    context: Tensor  # the context encoder's output [B, K, D]
    prediction: Tensor  # [B, M, width of a target]
    loss: Tensor  # scalar

    def detach(self) -> "Prediction":
        """The same without the graph."""
        return replace(
            self, context=self.context.detach(), prediction=self.prediction.detach(), loss=self.loss.detach()
        )


@dataclass
class Outcome:
    """One step; `loss` is what is minimised."""

    loss: Tensor  # scalar
    parts: dict[str, Tensor]  # what it is made of, by name, detached: prediction, regulariser, each kind of mask, ...
    grid: Grid
    targets: Tensor | None = None  # what is predicted, for all tokens [B, N, width]; None where nothing is
    predictions: list[Prediction] = field(default_factory=list)  # one a kind of mask; none where nothing is predicted

    def detach(self) -> "Outcome":
        """The same without the graph: what a watcher may keep."""
        return replace(self, loss=self.loss.detach(), predictions=[one.detach() for one in self.predictions])


def summarise(predictions: list[Prediction], penalties: list[Tensor], grid: Grid, targets: Tensor) -> Outcome:
    """The step's outcome: losses and penalties, one of each a kind of mask, are averaged over the kinds."""
    error = torch.stack([one.loss for one in predictions]).mean()
    penalty = torch.stack(penalties).mean()
    parts = {"prediction": error.detach(), "regulariser": penalty.detach()}
    parts |= {one.name: one.loss.detach() for one in predictions}
    return Outcome(error + penalty, parts, grid, targets, predictions)
