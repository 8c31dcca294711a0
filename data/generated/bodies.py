"""Simple physics whose coefficients cannot be seen in a single frame, only in the motion.

The first frame is drawn independently of gravity, stiffness, masses and friction, so a clip's coefficient and its class
(which part of the range it lies in) can be inferred from the motion alone. Lengths are in pixels of a 64-pixel frame,
times in frames, angles in radians from hanging down. T frames.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from data.generated.drawing import Colour, Stage, draw_backdrop, draw_colours, draw_light, paint_post
from data.generated.kinds import (
    LEVELS,
    Clip,
    VideoConfig,
    check_levels,
    check_ranges,
    clip_random,
    draw_level,
    generated,
)

State = tuple[float, ...]
Tracks = npt.NDArray[np.float64]
Scenario = Literal["pendulum", "balls", "collision", "spring", "arm"]

_FLOOR = 58.0
_SUBSTEPS = 8  # integration steps per frame


@dataclass(frozen=True)
class BodiesConfig(VideoConfig):
    """Values are drawn uniformly from the ranges, coefficients level by level and (except `fall`) in logarithm."""

    scenario: Scenario = "pendulum"
    levels: int = 3  # number of classes: equal parts of the coefficient's range; 1: no label
    gravity: tuple[float, float] = (2.0, 12.0)  # pendulum, arm: pixels / frame^2
    fall: tuple[float, float] = (0.15, 1.0)  # balls: gravity, pixels / frame^2
    stiffness: tuple[float, float] = (0.12, 1.2)  # spring: per unit mass, 1 / frame^2
    mass_ratio: tuple[float, float] = (0.2, 5.0)  # collision: struck / striking ball; arm: lower / upper weight
    friction: tuple[float, float] = (0.0, 0.05)  # fraction of the speed lost per frame
    textures: bool = True  # textured backgrounds
    occluders: tuple[int, int] = (0, 0)  # number of posts in front of the scene
    flicker: float = 0.02  # relative standard deviation of the brightness between frames

    def __post_init__(self) -> None:
        super().__post_init__()
        check_levels(self.levels)
        check_ranges(self, "friction", "occluders")
        check_ranges(self, "gravity", "fall", "stiffness", "mass_ratio", least=1e-3)
        if self.flicker < 0:
            raise ValueError(f"flicker must not be negative, got {self.flicker}")


@dataclass(frozen=True)
class Scene:
    """A simulated scenario: its tracks, a function that paints them, and its values."""

    tracks: Tracks  # [T, S]
    paint: Callable[[Stage, list[Colour]], None]
    values: dict[str, float]


@generated("bodies", BodiesConfig, classes=lambda config: LEVELS[config.levels])
def render_bodies(config: BodiesConfig, index: int, seed: int) -> Clip:
    """Physics: a pendulum, bouncing balls, a collision, a cart on a spring or a two-link arm (scenario=)."""
    random = clip_random(seed, index)
    scene = SCENARIOS[config.scenario](random, config, index)
    ground, hue, is_dark = draw_backdrop(random, config.size, config.textures)
    stage = Stage(ground, config.frames)
    colours = draw_colours(random, hue, is_dark, 5)
    scene.paint(stage, colours)
    for _ in range(int(random.integers(config.occluders[0], config.occluders[1] + 1))):
        paint_post(stage, random.uniform(14, 50), 34, random.uniform(3, 6), 31, colours[3:])
    frames = stage.finish(draw_light(random, config.frames, config.flicker))
    return Clip(frames, index % config.levels if config.levels > 1 else None, scene.values)


def integrate(derivative: Callable[[State], State], state: State, frames: int, substeps: int = _SUBSTEPS) -> Tracks:
    """States [T, S] of an autonomous system at each frame, by the classical Runge-Kutta method."""
    step = 1 / substeps
    states = [state]
    for _ in range(frames - 1):
        for _ in range(substeps):
            first = derivative(state)
            second = derivative(_advance(state, first, step / 2))
            third = derivative(_advance(state, second, step / 2))
            fourth = derivative(_advance(state, third, step))
            state = tuple(
                s + step / 6 * (a + 2 * b + 2 * c + d)
                for s, a, b, c, d in zip(state, first, second, third, fourth, strict=True)
            )
        states.append(state)
    return np.asarray(states)


def _advance(state: State, slope: State, step: float) -> State:
    return tuple(s + step * d for s, d in zip(state, slope, strict=True))


def _pendulum(random: np.random.Generator, config: BodiesConfig, index: int) -> Scene:
    gravity = draw_level(random, index, config.levels, config.gravity, logarithmic=True)
    length, angle = random.uniform(19, 27), random.uniform(0.5, 2.2) * random.choice((-1, 1))
    friction, rate = random.uniform(*config.friction), random.normal(0, 0.1)
    pull = gravity / length
    states = integrate(lambda s: (s[1], -pull * math.sin(s[0]) - friction * s[1]), (angle, rate), config.frames)
    pivot_x, pivot_y, bob = random.uniform(30, 34), random.uniform(22, 28), random.uniform(4.5, 6.5)

    def paint(stage: Stage, colours: list[Colour]) -> None:
        x, y = pivot_x + length * np.sin(states[:, 0]), pivot_y + length * np.cos(states[:, 0])
        stage.box(pivot_x, pivot_y - 2.5, 7, 1.5, colours[1])
        stage.rod(pivot_x, pivot_y, x, y, 1.0, colours[1])
        stage.disc(x, y, bob, colours[0])

    return Scene(states, paint, {"gravity": gravity, "friction": friction, "rate": _mean_rate(states[:, 1])})


def _balls(random: np.random.Generator, config: BodiesConfig, index: int) -> Scene:
    gravity = draw_level(random, index, config.levels, config.fall)
    bounce, count = random.uniform(0.5, 0.95), int(random.integers(2, 4))
    radius = random.uniform(3.5, 6.5, count)
    place = np.stack([random.uniform(8, 56, count), random.uniform(8, 34, count)])
    speed = np.stack([random.uniform(-2, 2, count), random.uniform(-1.5, 1.5, count)])
    low, high = np.stack([radius, radius - 100]), np.stack([64 - radius, _FLOOR - radius])
    step, states = 1 / _SUBSTEPS, [np.concatenate([place, speed]).ravel()]
    for _ in range(config.frames - 1):
        for _ in range(_SUBSTEPS):  # semi-implicit: the new speed moves the ball
            speed[1] += gravity * step
            place = place + speed * step
            outwards = ((place > high) & (speed > 0)) | ((place < low) & (speed < 0))
            speed = np.where(outwards, -bounce * speed, speed)
            place = np.clip(place, low, high)
        states.append(np.concatenate([place, speed]).ravel())
    tracks = np.asarray(states)

    def paint(stage: Stage, colours: list[Colour]) -> None:
        stage.box(32, _FLOOR + 4, 40, 4, colours[3])
        for ball in range(count):
            stage.disc(tracks[:, ball], tracks[:, count + ball], float(radius[ball]), colours[ball])

    pace = float(np.hypot(tracks[:, 2 * count : 3 * count], tracks[:, 3 * count :]).mean())
    return Scene(tracks, paint, {"gravity": gravity, "bounce": bounce, "speed": pace})


def _collision(random: np.random.Generator, config: BodiesConfig, index: int) -> Scene:
    """Two balls of equal size on a table seen from above; the masses decide how they separate."""
    ratio = draw_level(random, index, config.levels, config.mass_ratio, logarithmic=True)
    radius, friction = random.uniform(5, 7), random.uniform(*config.friction)
    heading, offset = random.uniform(0, 2 * np.pi), random.uniform(-0.6, 0.6) * radius
    ahead, aside = np.array([np.cos(heading), np.sin(heading)]), np.array([-np.sin(heading), np.cos(heading)])
    struck = np.array([32.0, 32.0]) + random.uniform(-4, 4, 2)
    speed, distance = random.uniform(2.6, 4.0), random.uniform(20, 26)
    places = np.stack([struck - distance * ahead + offset * aside, struck])
    speeds = np.stack([speed * ahead, np.zeros(2)])
    step, states = 1 / _SUBSTEPS, [places.ravel()]
    for _ in range(config.frames - 1):
        for _ in range(_SUBSTEPS):
            speeds *= 1 - friction * step
            places = places + speeds * step
            between = places[1] - places[0]
            normal = between / np.linalg.norm(between)
            closing = float((speeds[0] - speeds[1]) @ normal)
            if np.linalg.norm(between) < 2 * radius and closing > 0:
                impulse = 2 * closing / (1 + 1 / ratio) * normal  # elastic; the striking ball has mass 1
                speeds[0] -= impulse
                speeds[1] += impulse / ratio
        states.append(places.ravel())
    tracks = np.asarray(states)

    def paint(stage: Stage, colours: list[Colour]) -> None:
        for ball in range(2):
            stage.disc(tracks[:, 2 * ball], tracks[:, 2 * ball + 1], radius, colours[ball])

    return Scene(tracks, paint, {"mass_ratio": ratio, "log_mass_ratio": math.log(ratio), "friction": friction})


def _spring(random: np.random.Generator, config: BodiesConfig, index: int) -> Scene:
    stiffness = draw_level(random, index, config.levels, config.stiffness, logarithmic=True)
    friction, rest = random.uniform(*config.friction), random.uniform(32, 40)
    stretch = random.uniform(7, 15) * random.choice((-1, 1))
    states = integrate(lambda s: (s[1], -stiffness * s[0] - friction * s[1]), (stretch, 0.0), config.frames)
    height, half = random.uniform(36, 48), random.uniform(5, 7)

    def paint(stage: Stage, colours: list[Colour]) -> None:
        x = rest + states[:, 0]
        stage.box(32, height + 7.5, 40, 1.5, colours[3])
        stage.box(4, height - 6, 3, 12, colours[3])
        stage.zigzag(7, x - half, height, 3.2, 7, 0.7, colours[1])
        for side in (-0.55, 0.55):
            stage.disc(x + side * half, height + 4.2, 1.9, colours[2])
        stage.box(x, height, half, 3.4, colours[0])

    return Scene(states, paint, {"stiffness": stiffness, "friction": friction, "speed": _mean_rate(states[:, 1])})


def _arm(random: np.random.Generator, config: BodiesConfig, index: int) -> Scene:
    """A double pendulum; only the motion shows how heavy the lower weight is."""
    ratio = draw_level(random, index, config.levels, config.mass_ratio, logarithmic=True)
    gravity, friction = random.uniform(*config.gravity), random.uniform(*config.friction)
    upper, lower = random.uniform(12, 17), random.uniform(11, 15)
    heavy = ratio / (1 + ratio)  # lower weight as a fraction of the total mass

    def derivative(state: State) -> State:
        a, b, v, w = state
        cosine, sine = math.cos(a - b), math.sin(a - b)
        # The two equations of motion, divided by the total mass and one length each, solved with Cramer's rule.
        left, middle, right = upper, heavy * lower * cosine, lower
        push_a = -heavy * lower * w * w * sine - gravity * math.sin(a)
        push_b = upper * v * v * sine - gravity * math.sin(b)
        whole = left * right - middle * upper * cosine
        rise = (push_a * right - middle * push_b) / whole
        fall = (left * push_b - upper * cosine * push_a) / whole
        return v, w, rise - friction * v, fall - friction * w

    start = (*random.uniform(-2.4, 2.4, 2).tolist(), *random.normal(0, 0.08, 2).tolist())
    states = integrate(derivative, start, config.frames)
    pivot_x, pivot_y = random.uniform(29, 35), random.uniform(26, 32)

    def paint(stage: Stage, colours: list[Colour]) -> None:
        x, y = pivot_x + upper * np.sin(states[:, 0]), pivot_y + upper * np.cos(states[:, 0])
        end_x, end_y = x + lower * np.sin(states[:, 1]), y + lower * np.cos(states[:, 1])
        stage.disc(pivot_x, pivot_y, 2.2, colours[3])
        stage.rod(pivot_x, pivot_y, x, y, 1.5, colours[1])
        stage.rod(x, y, end_x, end_y, 1.5, colours[2])
        stage.disc(x, y, 3.6, colours[1])
        stage.disc(end_x, end_y, 3.6, colours[0])

    rates = {"rate_upper": _mean_rate(states[:, 2]), "rate_lower": _mean_rate(states[:, 3])}
    return Scene(states, paint, {"mass_ratio": ratio, "log_mass_ratio": math.log(ratio), "gravity": gravity, **rates})


def _mean_rate(track: npt.NDArray[np.float64]) -> float:
    return float(np.abs(track).mean())


SCENARIOS: dict[str, Callable[[np.random.Generator, BodiesConfig, int], Scene]] = {
    "pendulum": _pendulum, "balls": _balls, "collision": _collision, "spring": _spring, "arm": _arm,
}  # fmt: skip
