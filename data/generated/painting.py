"""Textured sprites, painted into the frames of a clip with translation, rotation and scaling.

A sprite is drawn once as a square of texels (colour premultiplied by alpha); each frame samples it bilinearly through
the inverse of its pose, inside its bounding box only. A pixel is one uint64 with four 16-bit lanes (red, green, blue,
alpha; 0 to 255 each), so one integer multiplication weights all four. T frames, S texels per side, P pixels per side of
a bounding box.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]
Pixels = npt.NDArray[np.uint64]

EXTENT = 1.25  # half the side of the texel square, in radii: the shape fills 1, its shadow the rest
_TEXELS = 40  # per side; sprites that are small on screen use a half-size version, to avoid flicker
_SMALL = 0.9  # texels per pixel up to which the half-size version is sharp enough
_SOFT_EDGE = 0.09  # radii; about one pixel for the largest sprites
_SHADOW_WIDTH = 0.22  # radii
_SHADOW_DEPTH = 0.5

_EIGHT = np.uint64(8)
_LOW_BYTES = np.uint64(0x00FF00FF00FF00FF)
_HALVES = np.uint64(0x0080008000800080)  # one half in every lane, for rounding before the division by 256


@dataclass(frozen=True)
class Look:
    """Appearance of a sprite."""

    shape: int  # 0 to 7
    texture: int  # 0 to 5
    frequency: float  # of the texture, in radians per radius
    phases: tuple[float, float]
    bright: tuple[float, float, float]  # red, green, blue, 0 to 1
    deep: tuple[float, float, float]


@dataclass(frozen=True)
class Poses:
    """Pose and opacity of a sprite in each frame; every field is [T]."""

    x: Floats  # pixels; the centre of the leftmost pixel is 0
    y: Floats  # pixels, downwards
    radius: Floats  # pixels
    angle: Floats  # radians, clockwise on screen
    opacity: Floats  # 0 to 1


def draw_look(random: np.random.Generator, hue: float) -> Look:
    """A random look whose colours stand out from a background of that hue."""
    shape, texture, frequency, *more = random.uniform(size=11).tolist()
    own_hue = hue + 0.15 + 0.7 * more[2]
    return Look(
        shape=int(shape * len(_SHAPES)),
        texture=int(texture * 6),
        frequency=4 + 4 * frequency,
        phases=(2 * np.pi * more[0], 2 * np.pi * more[1]),
        bright=mix_colour(own_hue, 0.35 + 0.5 * more[3], 0.8 + 0.2 * more[4]),
        deep=mix_colour(own_hue - 0.2 + 0.4 * more[5], 0.5 + 0.4 * more[6], 0.5 + 0.25 * more[7]),
    )


def paint_sprite(frames: Pixels, look: Look, poses: Poses) -> None:
    """Blend a sprite into frames [T, H, W], in place."""
    height, width = frames.shape[1:]
    reach = poses.radius * np.float32(EXTENT) + 1
    visible = (poses.x > -reach) & (poses.x < width - 1 + reach) & (poses.y > -reach) & (poses.y < height - 1 + reach)
    visible &= poses.opacity > 0
    if not visible.any():
        return
    texels = _draw_texels(look)
    small = poses.radius * (2 * EXTENT * _SMALL) < _TEXELS / 2
    large_index, small_index = np.flatnonzero(visible & ~small), np.flatnonzero(visible & small)
    if large_index.size:
        _paint_frames(frames, texels, poses, large_index)
    if small_index.size:
        _paint_frames(frames, _halve(texels), poses, small_index)


def pack_pixels(colours: list[Floats]) -> Pixels:
    """Planes of equal shape with values 0 to 1, red first -> pixels of that shape."""
    pixels = np.zeros(colours[0].shape, np.uint64)
    for lane, plane in enumerate(colours):
        pixels |= (plane * np.float32(255) + np.float32(0.5)).astype(np.uint64) << np.uint64(16 * lane)
    return pixels


def unpack_pixels(pixels: Pixels) -> npt.NDArray[np.uint8]:
    """Pixels [...] -> red, green, blue [..., 3]."""
    lanes = pixels.astype("<u8", copy=False).view(np.uint8).reshape(*pixels.shape, 8)
    return np.ascontiguousarray(lanes[..., 0:6:2])


def blend_pixels(first: Pixels, second: Pixels, fraction: float) -> Pixels:
    """first + fraction * (second - first), lane by lane."""
    weight = round(256 * fraction)
    mixed = first * np.uint64(256 - weight)
    mixed += second * np.uint64(weight)
    return _divide_lanes(mixed)


def mix_colour(hue: float, saturation: float, value: float) -> tuple[float, float, float]:
    """Hue (in turns), saturation and value (0 to 1) -> red, green, blue, by value * (1 - saturation * distance)."""
    red, green, blue = (min(max(2 - abs((hue + turn) % 1 * 6 - 3), 0.0), 1.0) for turn in (0, 2 / 3, 1 / 3))
    return value * (1 - saturation * red), value * (1 - saturation * green), value * (1 - saturation * blue)


def _paint_frames(frames: Pixels, texels: Pixels, poses: Poses, index: npt.NDArray[np.intp]) -> None:
    """Paint the frames in `index`, all with a bounding box of the same size."""
    height, width = frames.shape[1:]
    reach = poses.radius[index] * np.float32(EXTENT)
    side = int(np.ceil(2 * reach.max())) + 1
    steps = np.arange(side)
    x = np.ceil(poses.x[index] - side / 2).astype(np.int64)[:, None] + steps  # [T, P]
    y = np.ceil(poses.y[index] - side / 2).astype(np.int64)[:, None] + steps
    on_screen = ((y >= 0) & (y < height))[:, :, None] & ((x >= 0) & (x < width))[:, None, :]
    offsets = (((index * height)[:, None] + y) * width)[:, :, None] + x[:, None, :]

    scale = len(texels) / (2 * reach) * 256  # texel coordinates are in units of 1/256 texel
    cosine, sine = (np.cos(poses.angle[index]) * scale)[:, None], (np.sin(poses.angle[index]) * scale)[:, None]
    middle = (len(texels) - 1) * 128
    u, v = x - poses.x[index][:, None], y - poses.y[index][:, None]
    column = (u * cosine + middle).astype(np.int32)[:, None, :] + (v * sine).astype(np.int32)[:, :, None]
    row = (middle - u * sine).astype(np.int32)[:, None, :] + (v * cosine).astype(np.int32)[:, :, None]
    chosen = np.flatnonzero(on_screen)
    offsets, row, column = (grid.reshape(-1).take(chosen) for grid in (offsets, row, column))
    painted = _sample(texels, row, column)

    opacity = np.rint(poses.opacity[index] * 256).astype(np.uint64)
    if opacity.min() < 256:
        painted *= opacity.repeat(np.count_nonzero(on_screen, axis=(1, 2)))
        painted = _divide_lanes(painted)
    alpha = painted >> np.uint64(48)
    alpha += alpha >> np.uint64(7)  # 0 to 256
    pixels = frames.reshape(-1)
    behind = pixels.take(offsets)
    behind *= np.uint64(256) - alpha
    pixels[offsets] = (_divide_lanes(behind) + painted) & _LOW_BYTES


def _sample(texels: Pixels, row: npt.NDArray[np.int32], column: npt.NDArray[np.int32]) -> Pixels:
    """Bilinear samples [n] at coordinates row, column [n] in 1/256 texel; outside lies the empty border."""
    side = len(texels)
    last = 256 * (side - 1) - 1
    np.clip(row, 0, last, out=row)
    np.clip(column, 0, last, out=column)
    corner = row >> 8
    corner *= side
    corner += column >> 8
    row &= 255
    column &= 255
    both = row * column
    both += 128
    both >>= 8
    row -= both
    column -= both
    weights = (256 - both - row - column, column, row, both)  # of the corners; the sum is exactly 256
    flat = texels.reshape(-1)
    total = np.zeros(row.shape, np.uint64)
    for offset, weight in zip((0, 1, side, side + 1), weights, strict=True):
        term = flat[offset:].take(corner)
        term *= weight.astype(np.uint64)
        total += term
    return _divide_lanes(total)


def _divide_lanes(pixels: Pixels) -> Pixels:
    """Divide every lane by 256, rounding, in place."""
    pixels += _HALVES
    pixels >>= _EIGHT
    pixels &= _LOW_BYTES
    return pixels


def _halve(texels: Pixels) -> Pixels:
    """Mean over 2 x 2 texels, [S, S] -> [S/2, S/2]."""
    total = texels[::2, ::2] + texels[1::2, ::2] + texels[::2, 1::2] + texels[1::2, 1::2]
    return _divide_lanes(total * np.uint64(64))


def _draw_texels(look: Look) -> Pixels:
    """The texels [S, S] of a look."""
    coverage, shadow, light = _draw_shape(look.shape)
    lit = coverage * light
    texture = _draw_texture(look) * lit
    planes = [
        np.float32(deep) * lit + np.float32(bright - deep) * texture
        for bright, deep in zip(look.bright, look.deep, strict=True)
    ]
    return pack_pixels([*planes, shadow])


@functools.cache
def _texel_grid() -> tuple[Floats, Floats]:
    """Coordinates x, y [S, S] of texel centres, in radii."""
    line = ((np.arange(_TEXELS) + 0.5) / _TEXELS * 2 - 1) * EXTENT
    x, y = np.meshgrid(line.astype(np.float32), line.astype(np.float32))
    return x, y


@functools.cache
def _draw_shape(number: int) -> tuple[Floats, Floats, Floats]:
    """Coverage, alpha including the shadow, and light, each [S, S], from a shape's signed distance."""
    x, y = _texel_grid()
    distance = np.maximum(_SHAPES[number](x, y), np.hypot(x, y) - 0.95)
    coverage = np.clip(0.5 - distance / _SOFT_EDGE, 0, 1).astype(np.float32)
    shadow = _SHADOW_DEPTH * np.clip(1 - np.maximum(distance, 0) / _SHADOW_WIDTH, 0, 1) ** 2
    shadow[np.maximum(abs(x), abs(y)) > EXTENT * (1 - 4 / _TEXELS)] = 0  # keep the border empty, at half size too
    light = 0.88 + 0.12 * np.clip(y, -1, 1)  # a little shading, so that the rotation of a plain disc is visible
    return coverage, (coverage + (1 - coverage) * shadow).astype(np.float32), light.astype(np.float32)


def _draw_texture(look: Look) -> Floats:
    """A pattern [S, S] with values from 0 to 1: stripes, checks, dots, zigzags, blobs or two halves."""
    x, y = _texel_grid()
    across = x * np.float32(look.frequency) + np.float32(look.phases[0])
    along = y * np.float32(look.frequency) + np.float32(look.phases[1])
    if look.texture == 0:
        wave = np.sin(across)
    elif look.texture == 1:
        wave = np.sin(across) * np.sin(along)
    elif look.texture == 2:
        wave = np.sin(across) + np.sin(along) - np.float32(0.7)
    elif look.texture == 3:
        wave = np.sin(across + np.float32(1.4) * np.sin(along))
    elif look.texture == 4:
        wave = np.sin(across) + np.sin(np.float32(0.6) * along + np.float32(0.8) * across) + np.sin(along)
    else:
        wave = x + np.float32(0.25) * np.sin(along)
    pattern: Floats = np.clip(np.float32(0.5) + np.float32(2.2) * wave, 0, 1)
    return pattern


def _measure_disc(x: Floats, y: Floats) -> Floats:
    return np.hypot(x, y) - np.float32(0.9)


def _measure_square(x: Floats, y: Floats) -> Floats:
    return _measure_box(x, y, 0.5, 0.5) - np.float32(0.22)


def _measure_bar(x: Floats, y: Floats) -> Floats:
    return _measure_box(x, y, 0.72, 0.34) - np.float32(0.2)


def _measure_plus(x: Floats, y: Floats) -> Floats:
    return np.minimum(_measure_box(x, y, 0.8, 0.22), _measure_box(x, y, 0.22, 0.8)) - np.float32(0.12)


def _measure_triangle(x: Floats, y: Floats) -> Floats:
    normals = [(np.cos(turn), np.sin(turn)) for turn in np.pi * np.array([1 / 6, 5 / 6, 3 / 2])]
    sides = [x * np.float32(cosine) + y * np.float32(sine) for cosine, sine in normals]
    return np.maximum(np.maximum(sides[0], sides[1]), sides[2]) - np.float32(0.5)


def _measure_star(x: Floats, y: Floats) -> Floats:
    rim = np.float32(0.75) + np.float32(0.2) * np.cos(5 * np.arctan2(y, x))
    beyond_rim: Floats = np.hypot(x, y) - rim
    return beyond_rim * np.float32(0.8)


def _measure_ring(x: Floats, y: Floats) -> Floats:
    from_middle: Floats = np.abs(np.hypot(x, y) - np.float32(0.63))
    return from_middle - np.float32(0.29)


def _measure_crescent(x: Floats, y: Floats) -> Floats:
    bite: Floats = np.float32(0.6) - np.hypot(x - np.float32(0.55), y)
    return np.maximum(np.hypot(x, y) - np.float32(0.95), bite)


def _measure_box(x: Floats, y: Floats, half_width: float, half_height: float) -> Floats:
    """Signed distance to a rectangle."""
    beyond_x, beyond_y = np.abs(x) - np.float32(half_width), np.abs(y) - np.float32(half_height)
    outside: Floats = np.hypot(np.maximum(beyond_x, 0), np.maximum(beyond_y, 0))
    return outside + np.minimum(np.maximum(beyond_x, beyond_y), 0)


_SHAPES: tuple[Callable[[Floats, Floats], Floats], ...] = (
    _measure_disc,
    _measure_square,
    _measure_bar,
    _measure_plus,
    _measure_triangle,
    _measure_star,
    _measure_ring,
    _measure_crescent,
)
