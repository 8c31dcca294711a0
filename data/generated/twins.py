"""Possible and impossible twins: the same half clips, joined so that the physics is possible or impossible.

Four clips form a quadruplet, made of two first halves A, B and two second halves C, D: AC and BD are possible, AD and
BC are not. All four share the frame at the cut, so every frame, every difference of consecutive frames and every
comparison with the frame at the cut occurs equally often in possible and in impossible clips: a score based on frames
or their differences alone is exactly at chance. Lengths are pixels of a 64-pixel frame, x to the right, y downwards.

    vanish    a ball goes behind a post and is gone, or one comes out although none went in
    teleport  a ball goes in on one shelf and comes out on the other
    recolour  a ball goes in with one colour and comes out with another
    stop      a moving ball stops in plain view while another starts by itself
    wall      a ball passes through a wall that stands behind the post
    turn      a ball turns back behind the post although there is no wall
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data.generated.drawing import Colour, Stage, draw_backdrop, draw_colours, draw_light, grey, paint_post
from data.generated.kinds import Clip, VideoConfig, clip_random, generated

EVENTS = ("vanish", "teleport", "recolour", "stop", "wall", "turn")
CLASSES = ("possible", "impossible")
MEMBERS = ((0, 0), (1, 1), (0, 1), (1, 0))  # (first half, second half) of the four clips of a quadruplet

_LANES = (30.0, 54.0)  # height of the two shelves


@dataclass(frozen=True)
class TwinsConfig(VideoConfig):
    """Clip i belongs to quadruplet i // 4; the quadruplets cycle through `events`."""

    events: tuple[str, ...] = EVENTS
    speed: tuple[float, float] = (2.2, 3.2)  # pixels per frame for 16 frames; scaled for other lengths
    radius: tuple[float, float] = (3.6, 4.8)  # of the balls
    textures: bool = True  # textured backgrounds
    flicker: float = 0.02  # relative standard deviation of the brightness between frames

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = set(self.events) - set(EVENTS)
        if unknown or not self.events:
            raise ValueError(f"events must be some of {', '.join(EVENTS)}, got {', '.join(self.events) or 'none'}")
        if not 0 < self.radius[0] <= self.radius[1] <= 5:
            raise ValueError(f"radius must satisfy 0 < low <= high <= 5, to fit behind a post, got {self.radius}")
        if not 0 < self.speed[0] <= self.speed[1]:
            raise ValueError(f"speed must satisfy 0 < low <= high, got {self.speed}")
        if self.frames < 6:
            raise ValueError(f"frames must be at least 6 for two halves, got {self.frames}")


@dataclass(frozen=True)
class Ball:
    """Position of a ball in each frame, x [T], and its shelf and colour."""

    x: npt.NDArray[np.float64]
    lane: int  # shelf
    colour: int


@generated("twins", TwinsConfig, classes=lambda _: CLASSES)
def render_twins(config: TwinsConfig, index: int, seed: int) -> Clip:
    """Possible and impossible physics in quadruplets that share their halves; the event is hidden at the cut."""
    quadruplet, member = divmod(index, 4)
    random = clip_random(seed, quadruplet)  # the same scene for all four clips
    event = config.events[quadruplet % len(config.events)]
    cut = int(random.integers(config.frames * 2 // 5, config.frames * 3 // 5 + 1))
    radius = random.uniform(*config.radius)
    speed = random.uniform(*config.speed) * 16 / config.frames
    middle, direction = random.uniform(29, 35), float(random.choice((-1, 1)))
    swap = int(random.integers(2))
    first, second = MEMBERS[member]
    time = np.arange(config.frames)
    halves = [
        _place_balls(event, half, is_second, speed * np.abs(time - cut), radius, middle, direction, swap)
        for half, is_second in ((first, False), (second, True))
    ]
    frames = _paint(random, config, event, (time <= cut, halves), radius, middle)
    values = {"quadruplet": float(quadruplet), "event": float(EVENTS.index(event)), "cut": float(cut)}
    return Clip(frames, int(first != second), values)


def _place_balls(
    event: str,
    half: int,
    is_second: bool,
    distance: npt.NDArray[np.float64],
    radius: float,
    middle: float,
    direction: float,
    lane: int,
) -> list[Ball]:
    """Balls of one half at `distance` [T] from the cut, in pixels travelled; extrapolated over all frames."""
    past = 1 if is_second else -1
    onwards = middle + direction * past * distance
    if event == "vanish":
        return [Ball(onwards, lane, 0)] if half == 0 else []
    if event == "teleport":
        return [Ball(onwards, (lane + half) % 2, 0)]
    if event == "recolour":
        return [Ball(onwards, lane, half)]
    if event == "stop":
        spots = (middle - 3, middle + 3)
        return [
            Ball(spots[ball] + (direction * past * distance if ball == half else 0 * distance), ball, ball)
            for ball in (0, 1)
        ]
    # A ball enters from a side, or leaves to it: half 0 against the direction, half 1 along it. With a wall the ball
    # stays on its side; without one it leaves on the other side.
    side = direction * (1 if half else -1)
    if event == "turn" and is_second:
        side = -side
    gap = radius + 1 if event == "wall" else 0.0
    return [Ball(middle + side * (gap + distance), lane, 0)]


def _paint(
    random: np.random.Generator,
    config: TwinsConfig,
    event: str,
    halves: tuple[npt.NDArray[np.bool_], list[list[Ball]]],
    radius: float,
    middle: float,
) -> npt.NDArray[np.uint8]:
    ground, hue, is_dark = draw_backdrop(random, config.size, config.textures)
    colours = draw_colours(random, hue, is_dark, 5)
    stage = Stage(ground, config.frames)
    _paint_bystander(random, stage, config.frames, colours[2])
    shelf = grey(0.45 if is_dark else 0.6)
    for lane in _LANES:
        stage.box(32, lane + 1, 40, 1, shelf)
    is_first, (before, after) = halves
    if event == "wall":
        stage.box(middle, 33, 1.6, 25, colours[4])
    for shown, balls in ((is_first, before), (~is_first, after)):
        for ball in balls:
            x = np.where(shown, ball.x, -100.0)
            _paint_ball(stage, x, shown, ball, radius, colours)
    if event != "stop":
        paint_post(stage, middle, 39, 2 * radius + 3.5 if event in ("wall", "turn") else radius + 3, 23, colours[3:])
    return stage.finish(draw_light(random, config.frames, config.flicker))


def _paint_ball(
    stage: Stage,
    x: npt.NDArray[np.float64],
    shown: npt.NDArray[np.bool_],
    ball: Ball,
    radius: float,
    colours: list[Colour],
) -> None:
    """A ball with a spot that rolls with it."""
    height = _LANES[ball.lane] - radius
    turn = x / radius
    stage.disc(x, height, radius, colours[ball.colour])
    if shown.any():
        dot_x, dot_y = x + 0.5 * radius * np.sin(turn), height - 0.5 * radius * np.cos(turn)
        stage.disc(dot_x, dot_y, 0.28 * radius, grey(0.95 if sum(colours[ball.colour]) < 1.4 else 0.08))


def _paint_bystander(random: np.random.Generator, stage: Stage, frames: int, colour: Colour) -> None:
    """A small ball that swings overhead, the same in all four clips, so that something always moves."""
    time = np.arange(frames) * 16 / frames
    x = random.uniform(14, 50) + random.uniform(-1.2, 1.2) * time
    y = 8 + 4 * np.sin(random.uniform(0, 2 * np.pi) + random.uniform(0.4, 0.9) * time)
    stage.disc(x, y, random.uniform(2, 3), colour)
