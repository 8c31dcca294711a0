"""Crops and flips, the same for all frames of a clip: [T, H, W, C] uint8 -> [T, S, S, C] uint8.

Frames are cropped first and resized afterwards (torch's antialiased uint8 path): resizing whole frames would cost about
as much as decoding them. All randomness comes from the generator passed in; there is no global state.
"""

import math
import random
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate


@dataclass(frozen=True)
class Box:
    """A crop box, in pixels."""

    top: int
    left: int
    height: int
    width: int


def random_box(
    height: int, width: int, scale: tuple[float, float], aspect: tuple[float, float], draw: random.Random
) -> Box:
    """A random box whose area is `scale` times the frame's and whose width is `aspect` times its height.

    As in Inception training: up to ten attempts to find one that fits, then the largest centred box with an allowed
    aspect.
    """
    for _ in range(10):
        area = height * width * _uniform(draw, *scale)
        ratio = math.exp(_uniform(draw, math.log(aspect[0]), math.log(aspect[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top, left = int(draw.random() * (height - h + 1)), int(draw.random() * (width - w + 1))
            return Box(top, left, h, w)
    ratio = min(max(width / height, aspect[0]), aspect[1])
    w, h = min(width, round(height * ratio)), min(height, round(width / ratio))
    return Box((height - h) // 2, (width - w) // 2, max(h, 1), max(w, 1))


def square_boxes(height: int, width: int, crops: int, published: bool = False) -> list[Box]:
    """`crops` squares as large as the short side, evenly spaced along the long side; a single one is centred.

    `published`: a single square has 224/256 of the short side, as in V-JEPA's evaluation with one view.
    """
    side = min(height, width)
    if published and crops == 1:
        side = max(1, round(side * 224 / 256))
    shares = [0.5] if crops == 1 else [crop / (crops - 1) for crop in range(crops)]
    return [Box(round((height - side) * share), round((width - side) * share), side, side) for share in shares]


def crop_resize(frames: NDArray[np.uint8], box: Box, size: int, flip: bool = False) -> Tensor:
    """Crop frames [T, H, W, C] to `box` and resize to [T, size, size, C]; `flip` mirrors left and right."""
    part = torch.from_numpy(frames[:, box.top : box.top + box.height, box.left : box.left + box.width])
    if (box.height, box.width) != (size, size):
        channels_last = part.permute(0, 3, 1, 2)
        resized = interpolate(channels_last, size=(size, size), mode="bilinear", antialias=True)
        part = resized.permute(0, 2, 3, 1)
    if flip:
        part = part.flip(2)
    return part.contiguous()


def _uniform(draw: random.Random, low: float, high: float) -> float:
    return low + (high - low) * draw.random()
