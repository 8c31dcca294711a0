"""The motions of sprites.py over strongly textured backgrounds, with sprites brighter or darker than the background.

The polarity is drawn for each clip, independently of the label, so brightness does not reveal the sprites.
Backgrounds are [side, side] pixels.
"""

from dataclasses import dataclass

import numpy as np

from data.generated.ground import draw_ground
from data.generated.kinds import Clip, clip_seed, generated
from data.generated.painting import Floats, Pixels, mix_colour, pack_pixels
from data.generated.sprites import CLASSES, Scene, SyntheticConfig, render_scene


@dataclass(frozen=True)
class TexturesConfig(SyntheticConfig):
    """Lengths are pixels of a 64-pixel frame; `ground` is the brightness of dark backgrounds."""

    bright_ground: tuple[float, float] = (0.7, 0.95)  # brightness of bright backgrounds
    darkness: float = 0.38  # brightness of dark sprites, relative to bright ones
    bright_share: float = 0.5  # fraction of clips with a bright background and dark sprites
    contrast: float = 0.3  # of the texture, relative to the brightness of the background
    camera_shake: float = 0.3  # standard deviation of the whole picture's displacement

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.bright_ground
        if not 0 < low <= high <= 1:
            raise ValueError(f"textures.bright_ground must satisfy 0 < low <= high <= 1, got {self.bright_ground}")
        for name in ("darkness", "bright_share", "contrast"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"textures.{name} must lie in [0, 1], got {getattr(self, name)}")


@generated("textures", TexturesConfig, classes=lambda _: CLASSES)
def render_textures(config: TexturesConfig, index: int, seed: int) -> Clip:
    """The twelve motions over strong textures, with sprites brighter or darker than the background."""

    def draw_scene(random: np.random.Generator, hue: float, side: int) -> Scene:
        is_bright = bool(random.uniform() < config.bright_share)
        brightness = config.bright_ground if is_bright else config.ground
        ground = draw_ground(random, hue, side, brightness)
        return Scene(_weave(random, ground, hue, brightness, config.contrast), config.darkness if is_bright else 1.0)

    label = index % len(CLASSES)
    return Clip(render_scene(label, clip_seed(seed, index), config, draw_scene), label)


def _weave(
    random: np.random.Generator, ground: Pixels, hue: float, brightness: tuple[float, float], contrast: float
) -> Pixels:
    """A background [side, side] with one of five textures blended over it."""
    side = len(ground)
    line = np.linspace(-1, 1, side, dtype=np.float32)
    x, y = np.meshgrid(line, line)
    turn, frequency, phase, first, second = random.uniform(0, 1, 5).tolist()
    across = np.cos(2 * np.pi * turn) * x + np.sin(2 * np.pi * turn) * y
    along = np.cos(2 * np.pi * turn) * y - np.sin(2 * np.pi * turn) * x
    pitch, shift = 6 + 16 * frequency, 2 * np.pi * phase
    wave: Floats = (
        np.sin(pitch * across + shift),
        np.sin(pitch * across + shift) * np.sin(pitch * along),
        np.sin(pitch * np.hypot(x - first, y - second) + shift),
        np.sin(pitch * across + shift + 1.2 * np.sin(0.7 * pitch * along)),
        np.sin(pitch * across) + np.sin(0.8 * pitch * along + shift) - 0.6,
    )[int(random.integers(5))].astype(np.float32)
    pattern = np.clip(0.5 + 1.5 * wave, 0, 1)
    colour = mix_colour(
        hue + 0.3 * first - 0.15, 0.2 + 0.4 * second, brightness[0] + (brightness[1] - brightness[0]) * phase
    )
    planes = []
    for lane, shade in enumerate(colour):
        plane = ((ground >> np.uint64(16 * lane)) & np.uint64(255)).astype(np.float32) / 255
        planes.append(np.clip(plane + np.float32(contrast) * (np.float32(2 * shade) * pattern - plane), 0, 1))
    return pack_pixels(planes)
