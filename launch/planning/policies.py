"""Policies of the table: the planner on the world model, the same planner on the simulator, and the floor.

E episodes, S candidate plans, L actions of a plan, H = L / S steps of the model, A numbers of an action.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from launch.planning.config import PlanConfig
from launch.planning.environments import Info
from vjepa.energy import ActionCost, Energy, ForbiddenDisc, Future, GoalDistance, Probe, SurpriseCost
from vjepa.planning import Cost, Plan, plan
from vjepa.world.model import WorldModel, WorldState

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Measure:
    """How positions and distances are read from summaries; fitted on data."""

    probe: Probe | None  # summaries [..., R] -> positions [..., 2]
    unit: float  # median distance of summaries over a single action
    position_unit: float  # the same of positions
    surprise: float  # median of the expected log error
    r2: float = float("nan")  # of the probe on the clips it was not fitted on


class Policy(Protocol):
    """Chooses actions for E episodes at once."""

    def begin(self, infos: Sequence[Info]) -> None:
        """Start new episodes."""

    def act(self, frames: Array, infos: Sequence[Info], now: int) -> Array:
        """The next actions [E, executed, A], for frames [E, H, W, 3] after `now` actions."""


class RandomPolicy:
    """Uniformly random actions."""

    def __init__(self, config: PlanConfig, space: Any, chunk: int) -> None:
        self.config, self.space, self.chunk = config, space, chunk

    def begin(self, infos: Sequence[Info]) -> None:
        """See `Policy`."""
        self.random = np.random.default_rng([self.config.seed, self.chunk, 3])

    def act(self, frames: Array, infos: Sequence[Info], now: int) -> Array:
        """See `Policy`."""
        shape = (len(infos), self.config.executed, *self.space.shape)
        return self.random.uniform(self.space.low, self.space.high, shape)


class StraightPolicy:
    """Straight towards the goal, whatever stands between."""

    def __init__(self, config: PlanConfig, environment: Any) -> None:
        self.config, self.environment = config, environment

    def begin(self, infos: Sequence[Info]) -> None:
        """See `Policy`."""

    def act(self, frames: Array, infos: Sequence[Info], now: int) -> Array:
        """See `Policy`: only the first action is exact, so it is called once per action."""
        found: Array = self.environment.head_for(infos)[:, None]
        return found


class PlannedPolicy:
    """What the planner finds with the cost of `make_cost`; keeps the plans for a warm start."""

    def __init__(self, config: PlanConfig, limit: Any, width: int) -> None:
        self.config, self.limit, self.width = config, limit, width
        self.before: Plan | None = None

    def begin(self, infos: Sequence[Info]) -> None:
        """See `Policy`."""
        self.before = None
        self.discs = [info["disc"] for info in infos] if infos and "disc" in infos[0] else []

    def act(self, frames: Array, infos: Sequence[Info], now: int) -> Array:
        """See `Policy`."""
        found = plan(
            self.make_cost(frames, infos),
            self.config.planner,
            (len(infos), self.width),
            seed=self.config.seed * 1009 + now,
            limit=self.limit,
            before=self.before,
            executed=self.config.executed,
        )
        self.before = found
        return found.actions[:, : self.config.executed].double().numpy()

    def make_cost(self, frames: Array, infos: Sequence[Info]) -> Cost:
        """The cost of plans [E, S, L, A] from the present frames."""
        raise TypeError(f"{type(self).__name__} must define make_cost")

    def guardrails(self, goal: Energy, measure: Measure) -> Energy:
        """The goal plus the guardrails that the config asks for."""
        energy, config = goal, self.config.energy
        if config.action:
            energy = energy + config.action * ActionCost()
        if config.surprise:
            energy = energy + config.surprise * SurpriseCost(measure.surprise)
        if config.forbidden:
            if measure.probe is None or not self.discs:
                raise ValueError("energy.forbidden needs `data` with states, and an environment with place_disc")
            centre = torch.tensor(np.stack(self.discs), dtype=torch.float32)
            energy = energy + config.forbidden * ForbiddenDisc(measure.probe, centre, config.radius, config.margin)
        return energy


class ModelPolicy(PlannedPolicy):
    """The planner on a world model."""

    def __init__(self, config: PlanConfig, limit: Any, width: int, world: WorldModel, measure: Measure) -> None:
        super().__init__(config, limit, width)
        self.world, self.measure, self.stride = world, measure, count_stride(world, width, config)

    @torch.no_grad()
    def begin(self, infos: Sequence[Info]) -> None:
        """See `Policy`: encodes the goals."""
        super().begin(infos)
        self.goal = self.world.read(encode(self.world, np.stack([info["goal_frame"] for info in infos])).latent)

    @torch.no_grad()
    def make_cost(self, frames: Array, infos: Sequence[Info]) -> Cost:
        """See `PlannedPolicy`."""
        state = encode(self.world, frames)
        energy = self.guardrails(self.find_goal(), self.measure)

        def cost(actions: Tensor) -> Tensor:
            joined = actions.unflatten(2, (-1, self.stride)).flatten(3)
            return energy(imagine(self.world, state, joined, wants_surprise=self.config.energy.surprise > 0))

        return cost

    def find_goal(self) -> GoalDistance:
        """The distance to the goal that the config asks for."""
        config, measure = self.config.energy, self.measure
        if config.space == "latent":
            return GoalDistance(self.goal, measure.unit, config.goal)
        if measure.probe is None:
            raise ValueError("energy.space=position needs `data`, clips with states, for the probe of position")
        return GoalDistance(measure.probe(self.goal), measure.position_unit, config.goal, measure.probe)


class SimulatorPolicy(PlannedPolicy):
    """The same planner on the true dynamics, with positions in place of latents: the ceiling."""

    def __init__(self, config: PlanConfig, environment: Any, width: int, stride: int, measure: Measure) -> None:
        blind = replace(config.energy, surprise=0.0)
        super().__init__(replace(config, energy=blind), environment.limit, width)
        self.environment, self.stride = environment, stride
        self.measure = replace(measure, probe=lambda positions: positions)

    def make_cost(self, frames: Array, infos: Sequence[Info]) -> Cost:
        """See `PlannedPolicy`."""
        goal = torch.tensor(np.stack([info["goal"] for info in infos]), dtype=torch.float32)
        start = torch.tensor(np.stack([info["position"] for info in infos]), dtype=torch.float32)
        energy = self.guardrails(GoalDistance(goal, self.measure.position_unit, self.config.energy.goal), self.measure)

        def cost(actions: Tensor) -> Tensor:
            positions = self.environment.simulate(infos, actions.double().numpy())
            steps = torch.from_numpy(positions[:, :, self.stride - 1 :: self.stride]).float()
            return energy(Future(start, steps, actions))

        return cost


def encode(world: WorldModel, frames: Array) -> WorldState:
    """States of frames uint8 [E, H, W, 3]."""
    return world.encode(torch.from_numpy(np.ascontiguousarray(frames)))


def imagine(world: WorldModel, state: WorldState, actions: Tensor, wants_surprise: bool = False) -> Future:
    """The futures of plans [E, S, H, A] from E states; A holds all actions of a step."""
    shape = actions.shape
    flat = actions.flatten(0, 1)
    summaries = world.read(world.imagine(state.repeat(shape[1]), flat)).unflatten(0, shape[:2])
    start = world.read(state.latent)
    surprise = None
    if wants_surprise:
        before = torch.cat([start[:, None, None].expand(-1, shape[1], 1, -1), summaries[:, :, :-1]], 2)
        surprise = world.transition.expect_error(before, actions)
    return Future(start, summaries, actions, surprise)


def count_stride(world: WorldModel, width: int, config: PlanConfig) -> int:
    """Actions per step of the model; ValueError if environment, knots or executed actions do not fit it."""
    values = world.options.action_values
    if values % width:
        raise ValueError(
            f"the model takes {values} numbers per step, which is no multiple of the {width} numbers of an action of "
            f"env={config.env}: it was trained for another environment"
        )
    stride = values // width
    if config.planner.length % stride:
        raise ValueError(
            f"planner.knots must sum to a multiple of {stride}, the actions per step of the model, got "
            f"{config.planner.length}"
        )
    return stride
