"""V-JEPA's augmentation for training probes: RandAugment (Cubuk et al. 2020) and random erasing (Zhong et al. 2020).

Four of fifteen operations, each with probability 0.5, at a magnitude drawn from N(7, 0.5) of 10 and with a random sign
where there is one; the same for all frames of a clip. Erasing, with probability 0.25, fills a box with noise. All
randomness comes from the generator passed in.
"""

import math
import random
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

Frames = NDArray[np.uint8]
Alter = Callable[[Image.Image, float], Image.Image]

OPERATIONS, MAGNITUDE, DEVIATION, CHANCE = 4, 7.0, 0.5, 0.5
ERASE_CHANCE, ERASE_AREA, ERASE_ASPECT = 0.25, (0.02, 1 / 3), (0.3, 1 / 0.3)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's; erased pixels are normal in these units
FILL = tuple(round(255 * value) for value in MEAN)


def rand_augment(frames: Frames, draw: random.Random) -> Frames:
    """Frames [T, H, W, 3] with four random operations, drawn with replacement."""
    chosen = [draw.choice(ALTERATIONS) for _ in range(OPERATIONS)]
    images = [Image.fromarray(frame) for frame in frames]
    for alter, signed in chosen:
        applied, strength = draw.random() < CHANCE, min(max(draw.gauss(MAGNITUDE, DEVIATION), 0.0), 10.0) / 10
        sign = -1 if signed and draw.random() < 0.5 else 1
        if applied:
            images = [alter(image, sign * strength) for image in images]
    return np.stack([np.asarray(image) for image in images])


def erase(frames: Tensor, draw: random.Random) -> Tensor:
    """Frames uint8 [T, S, S, 3], with probability 0.25 one box, the same in all of them, filled with noise."""
    if draw.random() >= ERASE_CHANCE:
        return frames
    t, height, width, _ = frames.shape
    for _ in range(10):
        area = height * width * draw.uniform(*ERASE_AREA)
        ratio = math.exp(draw.uniform(*map(math.log, ERASE_ASPECT)))
        h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < h < height and 0 < w < width:
            top, left = draw.randint(0, height - h), draw.randint(0, width - w)
            generator = torch.Generator().manual_seed(draw.getrandbits(63))
            noise = torch.randn(t, h, w, 3, generator=generator) * torch.tensor(STD) + torch.tensor(MEAN)
            erased = frames.clone()
            erased[:, top : top + h, left : left + w] = (noise * 255).round().clamp(0, 255).to(torch.uint8)
            return erased
    return frames


def _move(image: Image.Image, *matrix: float) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=FILL)


def _solarise_add(image: Image.Image, strength: float) -> Image.Image:
    amount = int(110 * strength)
    table = [min(255, value + amount) if value < 128 else value for value in range(256)]
    return image.point(table * 3)


def _enhance(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> Alter:
    return lambda image, strength: kind(image).enhance(max(0.1, 1 + 0.9 * strength))


# (operation, has it a sign?); strength in [-1, 1] or [0, 1]
ALTERATIONS: list[tuple[Alter, bool]] = [
    (lambda image, strength: ImageOps.autocontrast(image), False),
    (lambda image, strength: ImageOps.equalize(image), False),
    (lambda image, strength: ImageOps.invert(image), False),
    (lambda image, strength: image.rotate(30 * strength, Image.Resampling.BICUBIC, fillcolor=FILL), True),
    (lambda image, strength: ImageOps.posterize(image, max(1, 4 - int(4 * strength))), False),
    (lambda image, strength: ImageOps.solarize(image, 256 - min(256, int(256 * strength))), False),
    (_solarise_add, False),
    (_enhance(ImageEnhance.Color), True),
    (_enhance(ImageEnhance.Contrast), True),
    (_enhance(ImageEnhance.Brightness), True),
    (_enhance(ImageEnhance.Sharpness), True),
    (lambda image, strength: _move(image, 1, 0.3 * strength, 0, 0, 1, 0), True),
    (lambda image, strength: _move(image, 1, 0, 0, 0.3 * strength, 1, 0), True),
    (lambda image, strength: _move(image, 1, 0, 0.45 * strength * image.width, 0, 1, 0), True),
    (lambda image, strength: _move(image, 1, 0, 0, 0, 1, 0.45 * strength * image.height), True),
]
