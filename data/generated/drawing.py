"""Antialiased discs, rods, boxes and zigzags, drawn from their distance fields inside their bounding boxes only.

A stage holds the frames of a clip with brightness from 0 to 1. Lengths are pixels of a 64-pixel frame, x to the right
and y downwards from the top left corner; tracks are [T] or scalars. T frames, H = W = size pixels.
"""

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from data.generated.ground import draw_ground
from data.generated.painting import mix_colour, unpack_pixels

Floats = npt.NDArray[np.float32]
Track = npt.NDArray[np.floating] | float
Colour = tuple[float, float, float]

_SHADING = 0.22  # how much lighter a shape's top is than its middle


class Stage:
    """Frames under construction, [T, H, W, 3]."""

    def __init__(self, ground: Floats, frames: int) -> None:
        self.size = len(ground)
        self.light = np.repeat(ground[None], frames, axis=0)
        self._scale = self.size / 64
        self._line = (np.arange(self.size, dtype=np.float32) + np.float32(0.5)) / np.float32(self._scale)

    def disc(self, x: Track, y: Track, radius: float, colour: Colour) -> None:
        """Draw a disc."""
        self.rod(x, y, x, y, radius, colour)

    def rod(self, x0: Track, y0: Track, x1: Track, y1: Track, radius: float, colour: Colour) -> None:
        """Draw a rod with round ends between two points."""
        ends = [self._track(track) for track in (x0, y0, x1, y1)]
        rows = self._reach(np.concatenate([ends[1], ends[3]]), radius)
        columns = self._reach(np.concatenate([ends[0], ends[2]]), radius)
        px, py = self._line[None, None, columns], self._line[None, rows, None]
        x0, y0, x1, y1 = (end[:, None, None] for end in ends)
        dx, dy = x1 - x0, y1 - y0
        along = ((px - x0) * dx + (py - y0) * dy) / np.maximum(dx * dx + dy * dy, np.float32(1e-6))
        np.clip(along, 0, 1, out=along)
        down = py - y0 - along * dy
        distance = np.hypot(px - x0 - along * dx, down)
        self._blend(rows, columns, distance - np.float32(radius), down / np.float32(radius), colour)

    def box(self, x: Track, y: Track, half_width: float, half_height: float, colour: Colour) -> None:
        """Draw an axis-aligned box."""
        x, y = self._track(x), self._track(y)
        rows, columns = self._reach(y, half_height), self._reach(x, half_width)
        across = np.abs(self._line[None, None, columns] - x[:, None, None]) - np.float32(half_width)
        down = self._line[None, rows, None] - y[:, None, None]
        distance = np.maximum(across, np.abs(down) - np.float32(half_height))
        self._blend(rows, columns, distance, down / np.float32(half_height), colour)

    def zigzag(self, x0: Track, x1: Track, y: float, height: float, turns: int, radius: float, colour: Colour) -> None:
        """Draw a horizontal spring from x0 to x1."""
        x0, x1 = self._track(x0), self._track(x1)
        points = [(x0 + (x1 - x0) * np.float32((n + 0.5) / turns), y + height * (-1) ** n) for n in range(turns)]
        corners = [(x0, y), *points, (x1, y)]
        for (ax, ay), (bx, by) in itertools.pairwise(corners):
            self.rod(ax, ay, bx, by, radius, colour)

    def finish(self, brightness: npt.NDArray[np.floating] | float = 1.0) -> npt.NDArray[np.uint8]:
        """Frames uint8 [T, H, W, 3], multiplied by a brightness [T]."""
        lit = self.light * np.asarray(brightness, np.float32).reshape(-1, 1, 1, 1)
        np.clip(lit, 0, 1, out=lit)
        lit *= 255
        lit += 0.5
        return lit.astype(np.uint8)

    def _track(self, track: Track) -> Floats:
        return np.atleast_1d(np.asarray(track, np.float32))

    def _reach(self, centres: Floats, radius: float) -> slice:
        """Pixels along one axis that a shape may touch in any frame."""
        low, high = (float(centres.min()) - radius) * self._scale - 1, (float(centres.max()) + radius) * self._scale + 2
        return slice(min(max(int(low), 0), self.size), min(max(int(high), 0), self.size))

    def _blend(self, rows: slice, columns: slice, distance: Floats, height: Floats, colour: Colour) -> None:
        cover = np.clip(np.float32(0.5) - distance * np.float32(self._scale), 0, 1)[..., None]
        shade = np.float32(1) - np.float32(_SHADING) * np.clip(height, -1, 1)[..., None]
        view = self.light[:, rows, columns]
        view *= 1 - cover  # a fully covered pixel keeps nothing of what is behind
        view += cover * shade * np.asarray(colour, np.float32)


def draw_backdrop(random: np.random.Generator, size: int, is_textured: bool) -> tuple[Floats, float, bool]:
    """A background [H, W, 3] from 0 to 1, its hue, and whether it is dark; without texture it is a soft gradient."""
    hue, is_dark = float(random.uniform()), bool(random.uniform() < 0.5)
    brightness = (0.14, 0.26) if is_dark else (0.78, 0.92)
    if is_textured:
        clutter = unpack_pixels(draw_ground(random, hue, size, brightness)) / np.float32(255)
        return clutter.astype(np.float32), hue, is_dark
    value, tilt = random.uniform(*brightness), random.uniform(-0.08, 0.08)
    colour = np.asarray(mix_colour(hue, random.uniform(0.1, 0.35), value), np.float32)
    line = np.linspace(-1, 1, size, dtype=np.float32)
    light = 1 + 0.12 * line[:, None] + tilt * line[None, :]
    ground: Floats = np.asarray(np.clip(light[..., None] * colour, 0, 1), np.float32)
    return ground, hue, is_dark


def draw_colours(random: np.random.Generator, hue: float, is_dark: bool, count: int) -> list[Colour]:
    """`count` colours that stand out from the backdrop and from each other."""
    turns = 0.2 + 0.6 * (np.arange(count) + random.uniform(0.1, 0.9)) / count
    random.shuffle(turns)
    value = (0.85, 1.0) if is_dark else (0.35, 0.55)
    return [mix_colour(hue + turn, random.uniform(0.55, 0.85), random.uniform(*value)) for turn in turns.tolist()]


def draw_light(random: np.random.Generator, frames: int, flicker: float) -> npt.NDArray[np.floating]:
    """Brightness [T] of a light that flickers with relative standard deviation `flicker`."""
    return random.uniform(0.9, 1.08) * (1 + flicker * random.normal(size=frames))


def grey(value: float) -> Colour:
    """A grey of brightness `value`, 0 to 1."""
    return value, value, value


def paint_post(
    stage: Stage, x: float, y: float, half_width: float, half_height: float, colours: Sequence[Colour]
) -> None:
    """Draw an occluder: a post with two stripes, in front of everything drawn before."""
    stage.box(x, y, half_width, half_height, colours[0])
    for part in (-0.45, 0.45):
        stage.box(x + part * half_width, y, max(0.12 * half_width, 0.5), half_height, colours[1])
