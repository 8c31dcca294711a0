"""Two Rooms: a dot moves in small steps through a square with a wall and a door; simulator and exploration clips.

64 x 64 pixels with a border 3 pixels wide and a vertical wall 5 pixels wide, whose door is open 6 pixels above and
below its centre. An action lies in the unit disc and moves the dot by at most 4 pixels; a move that hits a wall stops
there. Positions are (x, y) in pixels, the centre of the first pixel is 0, y points downwards. F frames; [...] any batch
shape.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from data.generated.kinds import Clip, VideoConfig, clip_random, generated

Array = npt.NDArray[np.floating[Any]]
Split = Literal["train", "held_out", "all"]

SIZE, BORDER, HALF_WALL, HALF_DOOR, REACH = 64, 3, 2.5, 6.0, 4.0  # pixels
SIGMA = 1.6  # of the dot, a Gaussian; pixels
CLEARANCE = 1.0  # pixels that always remain between the dot's centre and a wall
LOW, HIGH = BORDER - 0.5 + CLEARANCE, SIZE - BORDER - 0.5 - CLEARANCE
WALLS, DOORS = (20, 44), (13, 51)  # range of the wall's x and of the door's y (centres), both ends included
FIXED_WALL = 32
_CELL = 5  # layouts are grouped into cells of 5 x 5 pixels, a fifth of which is held out
_FLOOR, _WALL, _DOT = np.array([(0.93, 0.94, 0.96), (0.24, 0.28, 0.38), (0.90, 0.25, 0.16)], np.float32)


@dataclass(frozen=True)
class Layout:
    """Centre of the wall and of its door; numbers or arrays [...]."""

    wall: Any  # x
    door: Any  # y


@dataclass(frozen=True)
class RoomsConfig(VideoConfig):
    """Exploration clips: persistent random walks of 16 actions."""

    frames: int = 17
    layouts: Literal["random", "fixed"] = "random"  # fixed: the wall at x = 32, only the door moves
    split: Split = "train"  # layouts to use: train, held_out or all
    at_door: float = 0.25  # fraction of walks that start in the door
    along_wall: float = 0.35  # fraction of walks that follow the wall

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size != SIZE:
            raise ValueError(f"size must be {SIZE} for rooms, got {self.size}")
        if not (self.at_door >= 0 and self.along_wall >= 0 and self.at_door + self.along_wall <= 1):
            raise ValueError(
                f"need at_door, along_wall >= 0 and at_door + along_wall <= 1, got {self.at_door} and {self.along_wall}"
            )


@generated("rooms", RoomsConfig)
def render_rooms(config: RoomsConfig, index: int, seed: int) -> Clip:
    """Two Rooms: a dot explores two rooms joined by a door; clips carry actions and states."""
    random = clip_random(seed, index)
    layout = draw_layout(random, config.layouts, config.split)
    states, actions = explore(random, layout, config)
    values = {"wall": float(layout.wall), "door": float(layout.door)}
    return Clip(draw_rooms(states, layout), None, values, {"actions": actions, "states": states})


def is_held_out(layouts: Literal["random", "fixed"], wall: int, door: int) -> bool:
    """Whether a layout is in the test set: a fifth of the 5 x 5 cells, or 9 of the 39 doors of the fixed wall."""
    if layouts == "fixed":
        return (door - DOORS[0]) % 4 == 3
    return ((wall - WALLS[0]) // _CELL + 2 * ((door - DOORS[0]) // _CELL)) % 5 == 2


def draw_layout(random: np.random.Generator, layouts: Literal["random", "fixed"], split: Split) -> Layout:
    """A layout of the split, uniformly drawn."""
    while True:
        wall = FIXED_WALL if layouts == "fixed" else int(random.integers(WALLS[0], WALLS[1] + 1))
        door = int(random.integers(DOORS[0], DOORS[1] + 1))
        if split == "all" or is_held_out(layouts, wall, door) == (split == "held_out"):
            return Layout(wall, door)


def move(position: Array, action: Array, layout: Layout) -> Array:
    """Positions [..., 2] after one action [..., 2] each; the layout's arrays have the batch shape or broadcast to it.

    An action outside the unit disc is scaled back onto it; a move ends where it first touches a wall.
    """
    action = action / np.maximum(np.linalg.norm(action, axis=-1, keepdims=True), 1)
    step = REACH * action
    share = _free_share(position, step, layout)[..., None]
    return np.clip(position + share * step, LOW, HIGH)


def _free_share(position: Array, step: Array, layout: Layout) -> Array:
    """Fraction [...] of a step, from 0 to 1, until it touches the border or one of the two pieces of wall."""
    wall, door = np.asarray(layout.wall), np.asarray(layout.door)
    share = np.ones(step.shape[:-1])
    for axis in (0, 1):
        at, by = position[..., axis], step[..., axis]
        room = np.where(by > 0, HIGH - at, at - LOW)
        share = np.minimum(share, np.where(np.abs(by) > room, room / np.maximum(np.abs(by), 1e-12), 1))
    half, gap = HALF_WALL + CLEARANCE, HALF_DOOR - CLEARANCE
    for low, high in ((-100.0, door - gap), (door + gap, 200.0)):
        enters, leaves = np.full(share.shape, -np.inf), np.full(share.shape, np.inf)
        for axis, first, last in ((0, wall - half, wall + half), (1, low, high)):
            at = position[..., axis]
            by = np.where(np.abs(step[..., axis]) < 1e-12, 1e-12, step[..., axis])
            one, other = (first - at) / by, (last - at) / by
            enters, leaves = np.maximum(enters, np.minimum(one, other)), np.minimum(leaves, np.maximum(one, other))
        # A gap of a thousandth of a pixel remains, so that a dot at a wall is outside it and can slide along.
        back = 1e-3 / np.maximum(np.linalg.norm(step, axis=-1), 1e-12)
        hits = (enters < leaves) & (leaves > 1e-9) & (enters <= 1) & (enters > -back)
        share = np.where(hits, np.minimum(share, np.maximum(enters - back, 0)), share)
    return share


def is_free(position: Array, layout: Layout) -> npt.NDArray[np.bool_]:
    """Whether positions [..., 2] are outside all walls, [...]."""
    x, y = position[..., 0], position[..., 1]
    inside = ((position >= LOW) & (position <= HIGH)).all(axis=-1)
    at_wall = np.abs(x - np.asarray(layout.wall)) < HALF_WALL + CLEARANCE
    in_door = np.abs(y - np.asarray(layout.door)) <= HALF_DOOR - CLEARANCE
    free: npt.NDArray[np.bool_] = inside & (~at_wall | in_door)
    return free


def draw_rooms(positions: Array, layout: Layout) -> npt.NDArray[np.uint8]:
    """Frames [F, H, W, 3] of one layout with the dot at positions [F, 2]."""
    line = np.arange(SIZE, dtype=np.float32)
    solid = np.zeros((SIZE, SIZE), bool)
    solid[:BORDER], solid[-BORDER:], solid[:, :BORDER], solid[:, -BORDER:] = True, True, True, True
    solid |= (np.abs(line - layout.wall) <= HALF_WALL)[None] & (np.abs(line - layout.door) > HALF_DOOR)[:, None]
    ground = np.where(solid[..., None], _WALL, _FLOOR)
    across, down = (
        np.exp(-(((line - np.float32(positions[:, axis, None])) / SIGMA) ** 2) / 2).astype(np.float32)
        for axis in (0, 1)
    )
    cover = (down[:, :, None] * across[:, None, :])[..., None]
    frames: npt.NDArray[np.uint8] = ((ground + cover * (_DOT - ground)) * 255 + np.float32(0.5)).astype(np.uint8)
    return frames


def find_dot(frames: npt.NDArray[np.uint8]) -> Array:
    """Positions [F, 2] of the dot in frames [F, H, W, 3]: the centroid of the pixels redder than floor and wall."""
    redness = np.clip(frames[..., 0].astype(float) - frames[..., 1:].max(axis=-1) - 25, 0, None)
    redness[redness < 0.15 * redness.max(axis=(1, 2), keepdims=True)] = 0
    line = np.arange(SIZE)
    mass = np.maximum(redness.sum(axis=(1, 2)), 1e-9)
    return np.stack([redness.sum(axis=1) @ line / mass, redness.sum(axis=2) @ line / mass], axis=-1)


def draw_position(random: np.random.Generator, layout: Layout, room: int | None = None) -> Array:
    """A free position [2], in the left (0) or right (1) room, or anywhere."""
    while True:
        position = random.uniform(LOW, HIGH, 2)
        beyond = position[0] - layout.wall
        side = room is None or (abs(beyond) > HALF_WALL + CLEARANCE and (beyond > 0) == bool(room))
        if side and bool(is_free(position, layout)):
            return position


def explore(random: np.random.Generator, layout: Layout, config: RoomsConfig) -> tuple[Array, Array]:
    """A random walk: states [F, 2] and actions [F-1, 2]. The heading drifts and often changes when the dot is stuck."""
    fate, heading = random.uniform(), random.uniform(0, 2 * np.pi)
    follows_wall = config.at_door <= fate < config.at_door + config.along_wall
    side = float(random.choice((-1, 1)))
    if fate < config.at_door:
        half = np.array([HALF_WALL + 2, HALF_DOOR - CLEARANCE])
        position: Array = np.array([layout.wall, layout.door]) + random.uniform(-half, half)
        heading = random.normal(0, 0.7) + (np.pi if side < 0 else 0)
    elif follows_wall:
        beside = layout.wall + side * (HALF_WALL + CLEARANCE + random.uniform(0.1, 3))
        position = np.array([beside, random.uniform(LOW, HIGH)])
        heading = np.arctan2(random.choice((-1, 1)), -side * random.uniform(0, 0.25))
    else:
        position = draw_position(random, layout)
    speed = random.uniform(0.5, 1)
    states, actions = [position], []
    for _ in range(config.frames - 1):
        heading += random.normal(0, 0.1 if follows_wall else 0.3)
        length = np.clip(speed + random.normal(0, 0.1), 0, 1)
        action = length * np.array([np.cos(heading), np.sin(heading)])
        position = move(position, action, layout)
        if np.linalg.norm(position - states[-1]) < 0.3 * REACH * length and random.uniform() < 0.6:
            heading = random.uniform(0, 2 * np.pi)
        states.append(position)
        actions.append(action)
    return np.stack(states), np.stack(actions)
