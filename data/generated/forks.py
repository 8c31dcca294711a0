"""One past, two futures: a ball falls behind an occluder and comes out on its left or on its right.

Clips 2s and 2s + 1 show the same scene s until the ball is out of sight; the first then goes left, the second right. So
nothing in the first part says which, and each clip's alternative is known. Lengths are pixels of a 64-pixel frame, x
to the right, y downwards. T frames.
"""

from dataclasses import dataclass

import numpy as np

from data.generated.drawing import Stage, draw_backdrop, draw_colours, draw_light, grey
from data.generated.kinds import Clip, VideoConfig, check_ranges, clip_random, generated

BRANCHES = ("left", "right")

_RADIUS = 4.5
_TOP, _BOTTOM = 22.0, 46.0  # of the occluder


@dataclass(frozen=True)
class ForksConfig(VideoConfig):
    """Clip i shows scene i // 2 with branch i % 2."""

    textures: bool = False  # textured backgrounds
    angle: tuple[float, float] = (0.6, 0.9)  # horizontal pixels per vertical pixel after the fork
    flicker: float = 0.0  # relative standard deviation of the brightness between frames

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, "angle", least=0.5)
        if self.frames < 8 or self.flicker < 0:
            raise ValueError(f"frames must be at least 8 and flicker not negative, got {self.frames}, {self.flicker}")


@generated("forks", ForksConfig, classes=lambda _: BRANCHES)
def render_forks(config: ForksConfig, index: int, seed: int) -> Clip:
    """A ball falls behind a box and comes out left or right of it; clips 2s and 2s + 1 share all that comes before."""
    scene, branch = divmod(index, 2)
    random = clip_random(seed, scene)  # the same scene for both futures
    ground, hue, is_dark = draw_backdrop(random, config.size, config.textures)
    colours = draw_colours(random, hue, is_dark, 3)
    middle, slope = random.uniform(27, 37), random.uniform(*config.angle)
    # In the middle of the clip the ball is at the centre of the box, and no part of it shows.
    fall = 0.95 * 64 / config.frames
    y = (_TOP + _BOTTOM) / 2 + fall * (np.arange(config.frames) - (config.frames / 2 - 0.5))
    fork = (_TOP + _BOTTOM) / 2
    x = middle + (1 if branch else -1) * slope * np.maximum(0, y - fork)
    stage = Stage(ground, config.frames)
    stage.disc(x, y, _RADIUS, colours[0])
    turn = (y + x) / _RADIUS
    spot = (x + 0.5 * _RADIUS * np.sin(turn), y - 0.5 * _RADIUS * np.cos(turn))
    stage.disc(*spot, 0.28 * _RADIUS, grey(0.95 if sum(colours[0]) < 1.4 else 0.08))
    width = _RADIUS + 2 + slope * fall  # wide enough to hide the ball in the frames around the fork
    stage.box(middle, fork, width, (_BOTTOM - _TOP) / 2, colours[1])
    stage.box(middle, fork, 0.7 * width, (_BOTTOM - _TOP) / 2 - 4, colours[2])
    frames = stage.finish(draw_light(random, config.frames, config.flicker))
    return Clip(frames, branch, {"scene": float(scene), "branch": float(branch)})
