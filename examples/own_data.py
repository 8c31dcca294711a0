"""A data set of your own: a disc that swings like a pendulum; the label is its length, which sets the period.

vjepa --plugin examples/own_data.py generate swing runs/swing --clips 200
"""

from dataclasses import dataclass

import numpy as np

from data.generated.kinds import Clip, VideoConfig, generated


@dataclass(frozen=True)
class SwingConfig(VideoConfig):
    gravity: float = 9.81  # m/s^2


@generated("swing", SwingConfig, lambda config: ("short", "long"))
def render_swing(config: SwingConfig, index: int, seed: int) -> Clip:
    """A disc swinging on a short or a long string."""
    random = np.random.default_rng((seed, index))  # (config, index, seed) decide every pixel
    label, phase = index % 2, random.uniform(0, 2 * np.pi)
    frequency = np.sqrt(config.gravity / (0.25, 1.0)[label])  # rad/s of a string of 25 cm or 1 m
    y, x = np.mgrid[: config.size, : config.size] / config.size - 0.5
    frames = np.full((config.frames, config.size, config.size, 3), random.integers(0, 80, 3), dtype=np.uint8)
    for number in range(config.frames):
        angle = 0.7 * np.sin(frequency * number / config.fps + phase)
        disc = (x - 0.4 * np.sin(angle)) ** 2 + (y - 0.4 * np.cos(angle) + 0.25) ** 2 < 0.01
        frames[number, disc] = 255
    return Clip(frames, label, {"frequency": float(frequency)})
