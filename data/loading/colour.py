"""Changes of colour, the same for all frames of a clip: float [T, H, W, 3] in [0, 1] -> the same.

Brightness, contrast, saturation and hue in a random order, and grey, as torchvision's ColorJitter and RandomGrayscale
define them; the contrast of a frame is about its own mean. All randomness comes from the generator passed in.
"""

import random
from collections.abc import Callable

import torch
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def jitter(frames: Tensor, draw: random.Random, strengths: tuple[float, float, float, float]) -> Tensor:
    """Frames with random brightness, contrast, saturation (relative) and hue (fraction of the colour wheel).

    `strengths`: the largest change of each, in this order.
    """
    *relative, turn = strengths
    factors = [draw.uniform(max(0.0, 1 - strength), 1 + strength) for strength in relative]
    shift = draw.uniform(-turn, turn)
    changes: list[Callable[[Tensor], Tensor]] = [
        lambda x: (x * factors[0]).clamp(0, 1),
        lambda x: _blend(x, to_grey(x).mean((1, 2, 3), keepdim=True), factors[1]),
        lambda x: _blend(x, to_grey(x), factors[2]),
        lambda x: turn_hue(x, shift),
    ]
    for number in draw.sample(range(len(changes)), len(changes)):
        frames = changes[number](frames)
    return frames


def to_grey(frames: Tensor) -> Tensor:
    """Luma of frames [T, H, W, 3] -> [T, H, W, 1]."""
    return (frames * frames.new_tensor(LUMA)).sum(3, keepdim=True)


def turn_hue(frames: Tensor, shift: float) -> Tensor:
    """Frames with every hue moved by `shift` of the colour wheel; value and saturation stay."""
    high, low = frames.amax(3), frames.amin(3)
    spread = high - low
    red, green, blue = frames.unbind(3)
    safe = spread.clamp(min=1e-12)
    sector = torch.where(
        high == red,
        (green - blue) / safe,
        torch.where(high == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    sector = sector + 6 * shift
    offsets = ((number + sector) % 6 for number in (5, 3, 1))
    return torch.stack([high - spread * torch.minimum(k, 4 - k).clamp(0, 1) for k in offsets], 3)


def _blend(frames: Tensor, other: Tensor, factor: float) -> Tensor:
    return (factor * frames + (1 - factor) * other).clamp(0, 1)
