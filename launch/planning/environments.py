"""Environments to plan in, and the check that one offers what planning needs.

An environment speaks gymnasium's interface: observations are frames uint8 [H, W, 3]; `info` of reset and step has
`goal_frame` (what success looks like) and `success`. What else an environment can offer (its true dynamics, positions)
gives the table more rows.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from data.generated import rooms
from data.generated.rooms import CLEARANCE, HALF_DOOR, HALF_WALL, REACH, Layout
from data.generated.rooms_env import TwoRooms
from vjepa.planning import Limit
from vjepa.registry import Registry

Array = npt.NDArray[Any]
Info = Mapping[str, Any]

ENVIRONMENTS: Registry[Any] = Registry("env", "launch.planning.environments")
NEEDED = ("goal_frame", "success")  # keys of info


class Environment(Protocol):
    """What a registered class offers; `simulates`: does it have `simulate` and `head_for`?"""

    limit: Limit
    simulates: bool

    def make(self) -> Any:
        """A new environment with gymnasium's interface."""


@ENVIRONMENTS.register("two_rooms")
class Rooms:
    """Two Rooms (`data.generated.rooms_env`): layouts random or fixed, split train, held_out or all."""

    limit: Limit = "disc"
    simulates = True

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = {"layouts": "fixed", "split": "held_out", **settings}
        known = {"layouts": ("fixed", "random"), "split": ("train", "held_out", "all")}
        for name, value in self.settings.items():
            if name not in known or value not in known[name]:
                offered = "; ".join(f"{key}: {' or '.join(values)}" for key, values in known.items())
                raise ValueError(f"settings of env=two_rooms are {offered}; got {name}={value}")

    def make(self) -> TwoRooms:
        """See `Environment`."""
        return TwoRooms(**self.settings)

    def simulate(self, infos: Sequence[Info], actions: Array) -> Array:
        """True positions [E, S, L, 2] after each of the actions [E, S, L, 2]."""
        wall, door = (np.array([info["layout"][axis] for info in infos])[:, None] for axis in (0, 1))
        position = np.stack([info["position"] for info in infos])[:, None].repeat(actions.shape[1], 1)
        found = []
        for step in range(actions.shape[2]):
            position = rooms.move(position, actions[:, :, step], Layout(wall, door))
            found.append(position)
        return np.stack(found, 2)

    def head_for(self, infos: Sequence[Info]) -> Array:
        """The action [E, 2] that leads straight to the goal, whatever stands between."""
        gap = np.stack([info["goal"] - info["position"] for info in infos])
        heading: Array = gap / np.maximum(np.linalg.norm(gap, axis=1, keepdims=True), REACH)
        return heading

    def place_disc(self, info: Info) -> Array:
        """Centre [2] of a forbidden disc: in the middle of the longer leg of the way, to the door or from it."""
        door = np.array(info["layout"], float)
        ends = (info["position"], info["goal"])
        middle: Array = (max(ends, key=lambda end: float(np.linalg.norm(end - door))) + door) / 2
        return middle

    def push_at_walls(self, count: int, seed: int) -> tuple[Array, Array, Array, Array]:
        """Dots beside the wall, away from the door, and the action that pushes them at it.

        Returns frames [count, H, W, 3], actions [count, 2], the wall's x [count] and the side of the dots, -1 or 1.
        """
        random = np.random.default_rng([seed, 77])
        frames: list[Array] = []
        actions, walls, sides = [], [], []
        while len(frames) < count:
            layout = rooms.draw_layout(random, self.settings["layouts"], self.settings["split"])
            side, y = float(random.choice((-1, 1))), random.uniform(rooms.LOW, rooms.HIGH)
            x = layout.wall + side * (HALF_WALL + CLEARANCE + random.uniform(0.1, 4))
            if abs(y - layout.door) < HALF_DOOR + 3:
                continue
            frames.append(rooms.draw_rooms(np.array([[x, y]]), layout)[0])
            actions.append((-side, 0.0))
            walls.append(float(layout.wall))
            sides.append(side)
        return np.stack(frames), np.array(actions), np.array(walls), np.array(sides)


@ENVIRONMENTS.register("gymnasium")
class Gymnasium:
    """Any environment of gymnasium with pixels: settings hold its `id`, the rest goes to gymnasium.make."""

    limit: Limit = "box"
    simulates = False

    def __init__(self, settings: Mapping[str, Any]) -> None:
        if not settings.get("id"):
            raise ValueError("env=gymnasium needs settings.id, the name that gymnasium.make takes")
        self.settings = dict(settings)

    def make(self) -> Any:
        """See `Environment`; ImportError if gymnasium is missing, ValueError if it does not know the id."""
        try:
            import gymnasium
        except ImportError as error:
            raise ImportError("env=gymnasium needs gymnasium: pip install gymnasium") from error
        try:
            return gymnasium.make(**self.settings)
        except gymnasium.error.Error as error:
            raise ValueError(f"settings.id={self.settings['id']}: gymnasium cannot make it: {error}") from error


def open_environment(name: str, settings: Mapping[str, Any]) -> Any:
    """The environment registered under `name`, checked; ValueError says what it lacks."""
    environment = ENVIRONMENTS.find(name)(settings)
    check_environment(environment, name)
    return environment


def check_environment(environment: Any, name: str) -> None:
    """Raise ValueError unless an environment has frames, a goal, success, and repeats itself under a seed."""
    first, second = environment.make(), environment.make()
    frame, info = first.reset(seed=0)
    _check_frame(frame, name)
    _check_info(info, name, "reset")
    again, _ = second.reset(seed=0)
    if not np.array_equal(frame, again):
        raise ValueError(f"env={name}: two resets with the same seed must show the same frame, but they differ")
    shape = getattr(first.action_space, "shape", None)
    if not shape or len(shape) != 1:
        raise ValueError(f"env={name}: actions must be vectors (a Box of one axis), found {first.action_space}")
    found = first.step(np.zeros(shape, np.float32))
    if len(found) != 5:
        raise ValueError(f"env={name}: step must return frame, reward, terminated, truncated, info; got {len(found)}")
    _check_frame(found[0], name)
    _check_info(found[4], name, "step")
    first.close()
    second.close()


def _check_frame(frame: Any, name: str) -> None:
    if not (isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3):
        found = f"{frame.dtype} {list(frame.shape)}" if isinstance(frame, np.ndarray) else type(frame).__name__
        raise ValueError(
            f"env={name}: observations must be frames uint8 [H, W, 3], got {found}; choose an observation of pixels, "
            "or wrap the environment in one that renders"
        )


def _check_info(info: Any, name: str, where: str) -> None:
    missing = [key for key in NEEDED if key not in info]
    if missing:
        raise ValueError(
            f"env={name}: info of {where} must have {' and '.join(missing)}; it has {', '.join(info) or 'nothing'}. "
            "Register a wrapper that adds them with @ENVIRONMENTS.register in a plugin"
        )
