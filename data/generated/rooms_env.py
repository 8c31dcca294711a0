"""Two Rooms as an environment with gymnasium's interface; only `register` and `make_gymnasium_class` import gymnasium.

An episode starts in one room, has its goal in the other and lasts 48 actions. Success is a distance below 4.5 pixels:
`info["success"]` is for the current step, `info["reached"]` for any step so far. Positions are (x, y) in pixels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from data.generated.rooms import SIZE, Layout, Split, draw_layout, draw_position, draw_rooms, move

STEPS = 48  # actions per episode
NEAR = 4.5  # pixels from the goal that count as success

Frame = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Box:
    """Arrays of one shape between two bounds, like `gymnasium.spaces.Box` but without the dependency."""

    low: float
    high: float
    shape: tuple[int, ...]
    dtype: type[Any]

    def contains(self, x: npt.NDArray[Any]) -> bool:
        """Whether an array belongs to this space."""
        return x.shape == self.shape and bool(np.all(x >= self.low) and np.all(x <= self.high))

    def sample(self, random: np.random.Generator) -> npt.NDArray[Any]:
        """A uniformly random array."""
        if np.issubdtype(self.dtype, np.integer):
            return random.integers(int(self.low), int(self.high) + 1, self.shape).astype(self.dtype)
        return random.uniform(self.low, self.high, self.shape).astype(self.dtype)


class TwoRooms:
    """One dot, one goal. Observations are uint8 [64, 64, 3]; the reward is 1 while the dot is near the goal."""

    metadata: ClassVar[Mapping[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 8}

    def __init__(
        self, layouts: Literal["random", "fixed"] = "random", split: Split = "train", render_mode: str | None = None
    ) -> None:
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode must be rgb_array or None, got {render_mode!r}")
        self.layouts, self.split, self.render_mode = layouts, split, render_mode
        self.action_space = Box(-1.0, 1.0, (2,), np.float32)
        self.observation_space = Box(0, 255, (SIZE, SIZE, 3), np.uint8)
        self.layout = Layout(32, 32)
        self.position = self.goal = np.full(2, 32.0)
        self._random: np.random.Generator | None = None
        self._steps = 0
        self._reached = False

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[Frame, dict[str, Any]]:
        """Start an episode; options may set `layout` (wall, door), `position` and `goal`. Returns frame and info."""
        if seed is not None or self._random is None:
            self._random = np.random.default_rng(seed)
        options = options or {}
        start_room = int(self._random.integers(2))
        drawn = draw_layout(self._random, self.layouts, self.split)
        self.layout = Layout(*options["layout"]) if "layout" in options else drawn
        start, goal = (draw_position(self._random, self.layout, room) for room in (start_room, 1 - start_room))
        self.position = np.asarray(options.get("position", start), float)
        self.goal = np.asarray(options.get("goal", goal), float)
        self._steps, self._reached = 0, False
        return self._look(self.position), self._describe()

    def step(self, action: npt.NDArray[Any]) -> tuple[Frame, float, bool, bool, dict[str, Any]]:
        """Take one action: frame, reward, terminated (never), truncated (after 48 actions), info."""
        action = np.asarray(action, float)
        if action.shape != (2,) or not np.isfinite(action).all():
            raise ValueError(f"an action must be two finite numbers, in the unit disc, got {action.tolist()}")
        self.position = move(self.position, action, self.layout)
        self._steps += 1
        info = self._describe()
        return self._look(self.position), float(info["success"]), False, self._steps >= STEPS, info

    def render(self) -> Frame | None:
        """The current frame; None without a render mode."""
        return self._look(self.position) if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        """Do nothing: there are no resources to release."""

    def _describe(self) -> dict[str, Any]:
        distance = float(np.linalg.norm(self.position - self.goal))
        self._reached |= distance < NEAR
        return {
            "position": self.position.copy(),
            "goal": self.goal.copy(),
            "goal_frame": self._look(self.goal),
            "layout": (self.layout.wall, self.layout.door),
            "distance": distance,
            "success": distance < NEAR,
            "reached": self._reached,
        }

    def _look(self, position: npt.NDArray[Any]) -> Frame:
        frame: Frame = draw_rooms(position[None], self.layout)[0]
        return frame


def make_gymnasium_class() -> type[Any]:
    """A subclass of gymnasium.Env that wraps TwoRooms; ImportError says how to install gymnasium."""
    try:
        import gymnasium
    except ImportError as error:
        raise ImportError("the adapter needs gymnasium: pip install gymnasium; TwoRooms works without it") from error

    class GymnasiumTwoRooms(gymnasium.Env):  # type: ignore[misc]
        """Two Rooms for code that requires a gymnasium.Env."""

        metadata: ClassVar[dict[str, Any]] = dict(TwoRooms.metadata)

        def __init__(self, **settings: Any) -> None:
            self.rooms = TwoRooms(**settings)
            self.render_mode = self.rooms.render_mode
            self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
            self.observation_space = gymnasium.spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8)

        def reset(
            self, *, seed: int | None = None, options: dict[str, Any] | None = None
        ) -> tuple[Frame, dict[str, Any]]:
            """Start an episode."""
            super().reset(seed=seed)
            return self.rooms.reset(seed=seed, options=options)

        def step(self, action: npt.NDArray[Any]) -> tuple[Frame, float, bool, bool, dict[str, Any]]:
            """Take one action."""
            return self.rooms.step(action)

        def render(self) -> Frame | None:
            """The current frame."""
            return self.rooms.render()

    return GymnasiumTwoRooms


def register(name: str = "TwoRooms-v0") -> None:
    """Register the environment, so that `gymnasium.make(name)` finds it."""
    entry = make_gymnasium_class()
    import gymnasium

    gymnasium.register(id=name, entry_point=entry)
