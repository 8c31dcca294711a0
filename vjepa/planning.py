"""Planners: choose the sequence of actions with the lowest cost. They know nothing of models.

A planner is given cost(actions [E, S, L, A]) -> [E, S] for S candidate plans of each of E episodes; the same planner
runs on a world model and on a simulator. It searches over knots: K actions, each held for a number of the L actions.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

Cost = Callable[[Tensor], Tensor]
Limit = Literal["disc", "box"]


@dataclass(frozen=True)
class PlannerConfig:
    """How the best actions are searched for.

    mppi: elites weigh softmax(-cost); cem: all elites alike (the cross-entropy method); gradient: Adam on the actions
    through the model, from random restarts; random: the best of as many samples as the others draw in all.
    """

    kind: Literal["mppi", "cem", "gradient", "random"] = "mppi"
    samples: int = 200  # candidate plans per iteration; restarts of gradient
    elites: int = 20  # best samples that form the next distribution (mppi, cem)
    iterations: int = 4
    std: float = 1.0  # of the first samples, in units of the largest action
    floor: float = 0.15  # below which no standard deviation falls (mppi, cem)
    temperature: float = 0.3  # of mppi's softmax, as a fraction of the elites' range of costs
    lr: float = 0.2  # step size of gradient
    knots: tuple[int, ...] = (1, 1, 2, 4, 4, 4, 4, 4, 4, 4)  # how many actions in a row each knot is held for
    warm_start: bool = True  # start from the last plan, shifted by what was executed

    def __post_init__(self) -> None:
        if not self.knots or min(self.samples, self.iterations, *self.knots) < 1:
            raise ValueError(
                f"planner.samples, iterations and every knot must be at least 1, got {self.samples}, "
                f"{self.iterations} and {list(self.knots)}"
            )
        if not 1 <= self.elites <= self.samples:
            raise ValueError(f"planner.elites must lie between 1 and planner.samples, got {self.elites}")
        if min(self.std, self.temperature, self.lr) <= 0 or self.floor < 0:
            raise ValueError("planner.std, temperature and lr must be above 0, planner.floor at least 0")

    @property
    def length(self) -> int:
        """L, the number of actions of a plan."""
        return sum(self.knots)


@dataclass(frozen=True)
class Plan:
    """The plans of E episodes."""

    actions: Tensor  # [E, L, A]
    cost: Tensor  # [E]


def plan(
    cost: Cost, config: PlannerConfig, shape: tuple[int, int], *, seed: int, limit: Limit = "box",
    before: Plan | None = None, executed: int = 0,
) -> Plan:  # fmt: skip
    """The best plans for shape = (E, A). Depends only on the arguments: the random draws are the same for all episodes.

    limit: actions lie in the unit disc, or each number in [-1, 1]. before: the last plan, of which `executed` actions
    have been taken.
    """
    generator = torch.Generator().manual_seed(seed)
    mean = torch.zeros(shape[0], len(config.knots), shape[1])
    if before is not None and config.warm_start:
        mean = to_knots(shift(before.actions, executed), config.knots)
    search = {"gradient": _descend, "random": _shoot}.get(config.kind, _refine)
    best, lowest = search(cost, config, mean, generator, limit)
    return Plan(spread(best, config.knots), lowest)


def spread(knots: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """Knots [..., K, A], each held for its length -> actions [..., L, A]."""
    counts = torch.tensor(lengths, device=knots.device)
    held: Tensor = knots.repeat_interleave(counts, dim=-2)
    return held


def to_knots(actions: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """The mean of actions [E, L, A] over each knot -> [E, K, A]."""
    return torch.stack([part.mean(-2) for part in actions.split(list(lengths), -2)], -2)


def shift(actions: Tensor, executed: int) -> Tensor:
    """Actions [E, L, A] without the first `executed`; the last one is repeated at the end."""
    return torch.cat([actions[:, executed:], actions[:, -1:].expand(-1, executed, -1)], 1)


def bound(actions: Tensor, limit: Limit) -> Tensor:
    """Actions [..., A] scaled back to the unit disc, or clipped to [-1, 1]."""
    if limit == "box":
        return actions.clamp(-1, 1)
    within: Tensor = actions / actions.norm(dim=-1, keepdim=True).clamp(min=1)
    return within


@torch.no_grad()
def _refine(
    cost: Cost, config: PlannerConfig, mean: Tensor, generator: torch.Generator, limit: Limit
) -> tuple[Tensor, Tensor]:
    """MPPI and CEM: sample around a mean, fit mean and deviation to the elites, repeat. The mean is a sample too."""
    deviation = torch.full_like(mean, config.std)
    best, lowest = mean, torch.full((len(mean),), torch.inf)
    for _ in range(config.iterations):
        samples = _draw(config, mean, deviation, generator, limit)
        costs = cost(spread(samples, config.knots))
        order = costs.topk(config.elites, dim=1, largest=False)
        elites = samples.gather(1, order.indices[:, :, None, None].expand(-1, -1, *mean.shape[1:]))
        better = order.values[:, 0] < lowest
        best = torch.where(better[:, None, None], elites[:, 0], best)
        lowest = torch.where(better, order.values[:, 0], lowest)
        weights = _weigh(order.values, config)[:, :, None, None]
        mean = (weights * elites).sum(1)
        spread_out = (weights * (elites - mean.unsqueeze(1)).square()).sum(1).sqrt()
        deviation = spread_out.clamp(min=config.floor)
    return best, lowest


def _weigh(costs: Tensor, config: PlannerConfig) -> Tensor:
    """Weights of elites with costs [E, elites], best first, that sum to 1."""
    if config.kind == "cem":
        return torch.full_like(costs, 1 / costs.shape[1])
    scale = config.temperature * (costs[:, -1:] - costs[:, :1]) + 1e-9
    return torch.softmax(-(costs - costs[:, :1]) / scale, 1)


def _draw(config: PlannerConfig, mean: Tensor, deviation: Tensor, generator: torch.Generator, limit: Limit) -> Tensor:
    """Samples [E, S, K, A]; the first is the mean itself."""
    noise = torch.randn(config.samples, *mean.shape[1:], generator=generator)
    noise[0] = 0
    return bound(mean.unsqueeze(1) + deviation.unsqueeze(1) * noise, limit)


@torch.no_grad()
def _shoot(
    cost: Cost, config: PlannerConfig, mean: Tensor, generator: torch.Generator, limit: Limit
) -> tuple[Tensor, Tensor]:
    """Random shooting: nothing is learned from one batch of samples to the next."""
    once = replace(config, iterations=1, elites=1)
    found = [_refine(cost, once, mean, generator, limit) for _ in range(config.iterations)]
    lowest, which = torch.stack([value for _, value in found]).min(0)
    best = torch.stack([value for value, _ in found])
    return best[which, torch.arange(len(mean))], lowest


def _descend(
    cost: Cost, config: PlannerConfig, mean: Tensor, generator: torch.Generator, limit: Limit
) -> tuple[Tensor, Tensor]:
    """Adam on all restarts at once; the best point visited counts."""
    first = _draw(config, mean, torch.full_like(mean, config.std), generator, limit)
    knots = first.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([knots], lr=config.lr)
    best, lowest = first[:, 0], torch.full((len(mean),), torch.inf)
    for _ in range(config.iterations):
        with torch.enable_grad():
            bounded = bound(knots, limit)
            costs = cost(spread(bounded, config.knots))
            (gradient,) = torch.autograd.grad(costs.sum(), knots)
        smallest, which = costs.detach().min(1)
        candidate = bounded.detach()[torch.arange(len(mean)), which]
        better = smallest < lowest
        best = torch.where(better[:, None, None], candidate, best)
        lowest = torch.where(better, smallest, lowest)
        knots.grad = gradient
        optimizer.step()
    return best, lowest
