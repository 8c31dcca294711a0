"""Local views: small crops of a clip's frames with changed colours, beside the clip itself (LeVJEPA, DINO).

V views, T frames, S pixels.
"""

import random
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.loading.augment import crop_resize, random_box
from data.loading.colour import jitter, to_grey

ARRAY = "local"  # the name under which a batch holds the views


@dataclass(frozen=True)
class LocalConfig:
    """The local views of a clip; the defaults are LeVJEPA's. All frames of a view are changed alike."""

    count: int = 10  # views per clip
    crop: int = 96  # pixels
    scale: tuple[float, float] = (0.02, 0.4)  # area of a crop, as a fraction of the frame's
    aspect: tuple[float, float] = (3 / 4, 4 / 3)  # width / height of a crop
    flip: float = 0.5  # probability
    jitter: float = 0.8  # probability of changed colours
    brightness: float = 0.4  # largest change, relative
    contrast: float = 0.4  # largest change, relative
    saturation: float = 0.2  # largest change, relative
    hue: float = 0.1  # largest change, fraction of the colour wheel
    grey: float = 0.2  # probability of a view without colours

    def __post_init__(self) -> None:
        if self.count < 1 or self.crop < 1:
            raise ValueError(f"data.local.count and data.local.crop must be at least 1, got {self.count}, {self.crop}")
        for name, (low, high) in (("scale", self.scale), ("aspect", self.aspect)):
            if not 0 < low <= high or (name == "scale" and high > 1):
                raise ValueError(
                    f"data.local.{name} must satisfy 0 < low <= high, a scale at most 1; got {(low, high)}"
                )
        for name in ("flip", "jitter", "grey"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"data.local.{name} must lie in [0, 1], got {getattr(self, name)}")
        if min(self.brightness, self.contrast, self.saturation) < 0 or not 0 <= self.hue <= 0.5:
            raise ValueError(
                "data.local.brightness, contrast and saturation must be at least 0 and hue lie in [0, 0.5], got "
                f"{self.brightness}, {self.contrast}, {self.saturation} and {self.hue}"
            )

    def count_bytes(self, frames: int) -> int:
        """Bytes of the views of a clip of `frames` frames."""
        return self.count * frames * self.crop**2 * 3


def draw_views(frames: NDArray[np.uint8], config: LocalConfig, draw: random.Random) -> Tensor:
    """Local views of frames [T, H, W, 3] -> uint8 [V, T, S, S, 3]."""
    return torch.stack([_draw_view(frames, config, draw) for _ in range(config.count)])


def _draw_view(frames: NDArray[np.uint8], config: LocalConfig, draw: random.Random) -> Tensor:
    box = random_box(frames.shape[1], frames.shape[2], config.scale, config.aspect, draw)
    view = crop_resize(frames, box, config.crop, draw.random() < config.flip)
    coloured, grey = draw.random() < config.jitter, draw.random() < config.grey
    if not (coloured or grey):
        return view
    shown = view.float() / 255
    if coloured:
        shown = jitter(shown, draw, (config.brightness, config.contrast, config.saturation, config.hue))
    if grey:
        shown = to_grey(shown).expand_as(shown)
    return (shown * 255).round().to(torch.uint8)
