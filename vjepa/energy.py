"""Energies: what an imagined future costs. Energies add up: goal + 2.0 * guardrail is an energy too.

E episodes, S candidate plans each, H steps ahead, A numbers of an action, R numbers of a summary, V of a probe's value.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Probe = Callable[[Tensor], Tensor]  # summaries [..., R] -> values [..., V]
HowNear = Literal["last", "summed", "reach"]

NEAR, FAR = 1.5, 20.0  # of `reach`: what counts as at the goal, and the scale of the distance, in typical steps


@dataclass(frozen=True)
class Future:
    """An imagined future of every candidate plan."""

    start: Tensor  # summaries of the present [E, R]
    summaries: Tensor  # after each step [E, S, H, R]
    actions: Tensor  # [E, S, H, A]
    surprise: Tensor | None = None  # log of the squared error that the model expects of itself at each step [E, S, H]


class Energy(ABC):
    """A function of a future, to be made small."""

    @abstractmethod
    def __call__(self, future: Future) -> Tensor:
        """The cost of every candidate plan [E, S]."""

    def __add__(self, other: "Energy") -> "Energy":
        """The sum of two energies."""
        return Weighted(((1.0, self), (1.0, other)))

    def __rmul__(self, weight: float) -> "Energy":
        """The energy times a number."""
        return Weighted(((weight, self),))


@dataclass(frozen=True)
class Weighted(Energy):
    """A weighted sum of energies."""

    terms: tuple[tuple[float, Energy], ...]

    def __call__(self, future: Future) -> Tensor:
        """See `Energy`."""
        return torch.stack([weight * energy(future) for weight, energy in self.terms]).sum(0)


@dataclass(frozen=True)
class GoalDistance(Energy):
    """Distance of the summaries, or of a probe's value of them, to a goal.

    last: after the last step. summed: the mean over the steps. reach: the share of steps spent away from the goal
    (farther than 1.5 units), plus the smallest distance in 20 units; so a plan gains by arriving early and by staying,
    and detours cost only their time. The unit is the distance of a
    typical single action, of which a step of the model may hold several.
    """

    goal: Tensor  # [E, R], or [E, V] with a probe
    unit: float
    how: HowNear = "reach"
    probe: Probe | None = None

    def __call__(self, future: Future) -> Tensor:
        """See `Energy`."""
        reached = future.summaries if self.probe is None else self.probe(future.summaries)
        distance: Tensor = (reached - self.goal[:, None, None]).norm(dim=-1) / self.unit
        if self.how == "last":
            last: Tensor = distance[..., -1]
            return last
        if self.how == "summed":
            return distance.mean(-1)
        # A steep sigmoid instead of a step, so that gradient planners see a slope too.
        away: Tensor = torch.sigmoid((distance - NEAR) * 10)
        return away.mean(-1) + distance.amin(-1) / FAR


@dataclass(frozen=True)
class ActionCost(Energy):
    """Mean squared action."""

    def __call__(self, future: Future) -> Tensor:
        """See `Energy`."""
        return future.actions.square().mean((-1, -2))


@dataclass(frozen=True)
class SurpriseCost(Energy):
    """How far, summed over the steps, the model's own expected log error lies above a threshold."""

    threshold: float

    def __call__(self, future: Future) -> Tensor:
        """See `Energy`; ValueError if the world model has no such estimate."""
        if future.surprise is None:
            raise ValueError("the energy `surprise` needs a world model trained with rollout.surprise=true")
        return torch.relu(future.surprise - self.threshold).sum(-1)


@dataclass(frozen=True)
class ForbiddenDisc(Energy):
    """A guardrail: a disc, in the values of a probe, that the path must not enter.

    The path is the polygon through the probe's values at all steps, because a step may leap over the disc. Each of its
    pieces costs how deep it is within radius + margin, in margins.
    """

    probe: Probe  # to positions, V = 2
    centre: Tensor  # [E, 2]
    radius: float
    margin: float

    def __call__(self, future: Future) -> Tensor:
        """See `Energy`."""
        path = self.probe(future.summaries)
        first = self.probe(future.start)[:, None, None].expand(-1, path.shape[1], 1, -1)
        before, after = torch.cat([first, path[:, :, :-1]], 2), path
        distance = distance_to_segment(self.centre[:, None, None], before, after)
        return torch.relu(self.radius + self.margin - distance).sum(-1) / self.margin


def distance_to_segment(point: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """Distance of points [..., 2] to the segments from first to last [..., 2] -> [...]."""
    along = last - first
    share = ((point - first) * along).sum(-1) / along.square().sum(-1).clamp(min=1e-9)
    nearest = first + share.clamp(0, 1).unsqueeze(-1) * along
    found: Tensor = (point - nearest).norm(dim=-1)
    return found
