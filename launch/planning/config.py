"""The config of `vjepa plan`."""

from dataclasses import dataclass, field
from typing import Any, Literal

from launch.planning.environments import ENVIRONMENTS
from vjepa.energy import HowNear
from vjepa.planning import PlannerConfig

BASELINES = ("random", "straight", "untrained", "simulator", "model_position")


@dataclass(frozen=True)
class EnergyConfig:
    """What a plan costs: the distance to the goal, and weights of guardrails (0: off)."""

    goal: HowNear = "reach"  # last, summed or reach: see vjepa.energy.GoalDistance
    space: Literal["latent", "position"] = "latent"  # where it is measured: latent, or the probe's position
    action: float = 0.0  # weight of the mean squared action
    surprise: float = 0.0  # weight of the model's own expected error above its median on the data
    forbidden: float = 0.0  # weight of a forbidden disc on the natural way, which only the probe of position can see
    radius: float = 5.0  # of that disc, in the units of positions
    margin: float = 3.0  # around the disc, in which the penalty rises

    def __post_init__(self) -> None:
        for name in ("action", "surprise", "forbidden"):
            if getattr(self, name) < 0:
                raise ValueError(f"energy.{name} must be at least 0, got {getattr(self, name)}")
        if min(self.radius, self.margin) <= 0:
            raise ValueError(f"energy.radius and margin must be above 0, got {self.radius} and {self.margin}")


@dataclass(frozen=True)
class PlanConfig:
    """A world model, an environment, and how to plan in it."""

    model: str = ""  # run of objective=rollout, its .ckpt, or a folder of WorldModel.save
    env: str = field(
        default="two_rooms", metadata={"registry": ENVIRONMENTS}
    )  # a registered environment; `gymnasium` for any other one
    settings: dict[str, Any] = field(default_factory=dict)  # of the environment, such as layouts: fixed
    data: str = ""  # folder of packed clips with actions and states for the probe of position and the unit of distance
    test: str = ""  # another one for the gauges, with clips at least 17 model steps long; empty: no gauges of rollouts
    clips: int = 1000  # of `data` to use, at most
    output: str = "runs/plan"  # folder for results.json, report.html and pictures
    episodes: int = 200
    parallel: int = 50  # episodes that are planned together
    steps: int = 48  # actions of an episode
    executed: int = 4  # actions taken of each plan
    seed: int = 0  # of the episodes; episode i is the same in every row of the table
    compare: tuple[str, ...] = ("random", "straight", "untrained", "simulator")  # rows besides the model's own
    planner: PlannerConfig = field(default_factory=PlannerConfig)
    energy: EnergyConfig = field(default_factory=EnergyConfig)
    pictures: int = 3  # animated successes and failures in the report, of each at most
    plugins: tuple[str, ...] = ()  # modules with your own environments: dotted names or .py files

    def __post_init__(self) -> None:
        for name in ("episodes", "parallel", "steps", "executed", "clips"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.steps % self.executed:
            raise ValueError(f"steps must be a multiple of executed={self.executed}, got {self.steps}")
        if self.executed > self.planner.length:
            raise ValueError(
                f"executed must be at most the {self.planner.length} actions of planner.knots, got {self.executed}"
            )
        unknown = sorted(set(self.compare) - set(BASELINES))
        if unknown:
            raise ValueError(f"compare may name {', '.join(BASELINES)}, got {', '.join(unknown)}")
