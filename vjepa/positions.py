"""Position encodings: fixed sin-cos tables in 3D (V-JEPA 1) and 2D (I-JEPA), and 3D rotary embeddings (V-JEPA 2).

A grid is (t, h, w) tokens, N = t*h*w, flattened with time outermost and width innermost.
D model width, R head width.
"""

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Grid = tuple[int, int, int]
Positions = Literal["sincos", "sincos_2d", "rotary"]
RotaryOrder = Literal["interleaved", "tiled"]
Rotation = tuple[Tensor, Tensor]


def sincos_table(width: int, grid: Grid) -> Tensor:
    """Fixed position table [N, D]; each axis (depth, height, width) gets ceil(D/6)*2 columns, cut to D (V-JEPA 1)."""
    axis_width = 2 * math.ceil(width / 6)
    frequency = _frequencies(axis_width)
    columns = []
    for position in _axis_positions(grid):
        angle = position.double()[:, None] * frequency
        columns += [angle.sin(), angle.cos()]
    return torch.cat(columns, dim=1)[:, :width].float()


def sincos_table_2d(width: int, grid: Grid) -> Tensor:
    """Fixed position table of images [N, D], the same in every frame (I-JEPA).

    The first half of the columns is for the position along the width, the second for that along the height, each sines
    first; D must be a multiple of 4.
    """
    frequency = _frequencies(width // 2)
    _, height, across = _axis_positions(grid)
    angles = [position.double()[:, None] * frequency for position in (across, height)]
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1).float()


def position_table(positions: Positions, width: int, grid: Grid) -> Tensor:
    """The table [N, D] that is added to the tokens; empty for rotary positions, which are no table."""
    tables = {"sincos": sincos_table, "sincos_2d": sincos_table_2d}
    return tables[positions](width, grid) if positions in tables else torch.empty(0)


def interpolate_table(table: Tensor, source: Grid, wanted: Grid) -> Tensor:
    """Resample a position table [N, D] made for `source` to the grid `wanted`, trilinearly -> [N', D]."""
    if source == wanted:
        return table
    volume = table.T.reshape(1, -1, *source)
    return functional.interpolate(volume, size=wanted, mode="trilinear").flatten(2)[0].T


def rotary_rotation(
    head_width: int, grid: Grid, order: RotaryOrder, device: torch.device | None = None, span: int | None = None
) -> Rotation:
    """Cosine and sine, each [N, R], that rotate a head by its depth, height and width position.

    Each axis rotates 2*((R//3)//2) channels; the rest are unchanged (cosine 1, sine 0). `order` maps frequencies to
    channel pairs: `tiled` as in the released V-JEPA 2 weights (the two channels of a pair (2i, 2i+1) get different
    frequencies), `interleaved` as in standard rotary embeddings and V-JEPA 2.1. With `span`, height and width positions
    run from 0 to `span` on every grid (V-JEPA 2.1); time is never scaled.
    """
    axis_width = 2 * ((head_width // 3) // 2)
    frequency = _frequencies(axis_width)
    spread = frequency.repeat(2) if order == "tiled" else frequency.repeat_interleave(2)
    scales = [1.0] + [1.0 if span is None else span / max(side - 1, 1) for side in grid[1:]]
    positions = zip(_axis_positions(grid), scales, strict=True)
    angles = [position.double()[:, None] * scale * spread for position, scale in positions]
    rest = torch.zeros(angles[0].shape[0], head_width - 3 * axis_width, dtype=torch.float64)
    angle = torch.cat([*angles, rest], dim=1)
    return angle.cos().float().to(device), angle.sin().float().to(device)


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Rotate channel pairs: x [B, heads, K, R], cosine and sine broadcastable to it -> [B, heads, K, R]."""
    cosine, sine = rotation
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack((-second, first), dim=-1).flatten(-2)
    return x * cosine + turned * sine


def gather_rotation(rotation: Rotation, index: Tensor | None, dtype: torch.dtype) -> Rotation:
    """Rows of a rotation [N, R] for the tokens `index` [B, K] -> [B, 1, K, R]; None: all, [N, R]."""
    cosine, sine = (part.to(dtype) for part in rotation)
    if index is None:
        return cosine, sine
    return cosine[index].unsqueeze(1), sine[index].unsqueeze(1)


def _frequencies(axis_width: int) -> Tensor:
    half = axis_width // 2
    return 10000.0 ** -(torch.arange(half, dtype=torch.float64) / half)


def _axis_positions(grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
    """Depth, height and width position of every token, each [N]."""
    axes = torch.meshgrid(*(torch.arange(length) for length in grid), indexing="ij")
    depth, height, width = (axis.flatten() for axis in axes)
    return depth, height, width
