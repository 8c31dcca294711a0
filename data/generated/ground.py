"""The background of generated videos: a cluttered picture, larger than the frame, seen by a moving camera.

Pixels are packed as in painting.py. T frames, H = W = size pixels.
"""

import numpy as np

from data.generated.painting import Floats, Pixels, blend_pixels, mix_colour, pack_pixels


def draw_ground(random: np.random.Generator, hue: float, side: int, brightness: tuple[float, float]) -> Pixels:
    """A cluttered picture [side, side]: clouds of two colours at two scales, boxes and ripples."""
    line = np.linspace(0, 1, side, dtype=np.float32)
    clouds = []
    for cells, depth in ((5, 0.35), (5, 0.12), (20, 0.08)):
        blend = np.maximum(0, 1 - np.abs(line[:, None] * (cells - 1) - np.arange(cells))).astype(np.float32)
        clouds.append(blend @ random.normal(0, depth, (cells, cells)).astype(np.float32) @ blend.T)
    waves, phases = random.uniform(15, 60, 2), random.uniform(0, 2 * np.pi, 2)
    ripple = np.outer(*(np.sin(line * wave + phase) for wave, phase in zip(waves, phases, strict=True)))
    light = 1 + clouds[1] + clouds[2] + 0.06 * ripple.astype(np.float32)
    value = random.uniform(*brightness)
    first = mix_colour(hue + random.uniform(-0.1, 0), random.uniform(0.2, 0.6), value)
    second = mix_colour(hue + random.uniform(0, 0.1), random.uniform(0.2, 0.6), value * random.uniform(0.8, 1.25))
    share = np.clip(0.5 + clouds[0], 0, 1)
    planes = [np.float32(a) + np.float32(b - a) * share for a, b in zip(first, second, strict=True)]
    for _ in range(6):
        centre, half = random.uniform(0, 1, 2).astype(np.float32), random.uniform(0.03, 0.2, 2).astype(np.float32)
        down, across = (np.clip((h - np.abs(line - c)) * 50, 0, 1) for c, h in zip(centre, half, strict=True))
        colour = mix_colour(
            hue + random.uniform(-0.12, 0.12), random.uniform(0.2, 0.6), value * random.uniform(0.6, 1.6)
        )
        cover = np.outer(0.6 * down, across)
        planes = [plane + cover * (np.float32(shade) - plane) for plane, shade in zip(planes, colour, strict=True)]
    return pack_pixels([np.clip(plane * light, 0, 1) for plane in planes])


def shift_ground(ground: Pixels, camera: Floats, size: int) -> Pixels:
    """The central part of a background, seen by a camera displaced by [T, 2] pixels -> frames [T, H, W], bilinear."""
    margin = (len(ground) - size) // 2
    frames = np.empty((len(camera), size, size), np.uint64)
    for frame, (x, y) in zip(frames, margin - np.clip(camera, 1 - margin, margin - 1), strict=True):
        left, top = int(x), int(y)
        rows = ground[top : top + size + 1, left : left + size + 1]
        rows = blend_pixels(rows[:-1], rows[1:], y - top)
        frame[:] = blend_pixels(rows[:, :-1], rows[:, 1:], x - left)
    return frames
