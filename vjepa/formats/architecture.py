"""Infer the architecture from tensor shapes in a state dict with our names (equal to timm's and V-JEPA's)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vjepa.encoder import SIZES, EncoderConfig, SizeName
from vjepa.positions import Grid, Positions, RotaryOrder, position_table, sincos_table
from vjepa.predictor import PredictorConfig

TABLE, PREDICTOR_TABLE = "pos_embed", "predictor_pos_embed"  # frozen tables in official files
TABLE_TOLERANCE = 1e-3  # for frozen position tables, which may have been stored in half precision


@dataclass(frozen=True)
class Hints:
    """Architecture details that a weights file does not contain; 0 and None: inferred or as published."""

    heads: int = 0  # of the encoder
    predictor_heads: int = 0
    positions: Positions | None = None
    rotary_order: RotaryOrder = "tiled"  # of rotary positions; the released V-JEPA 2 weights are tiled
    frames: int = 0  # of a clip
    crop: int = 0  # pixels of a clip


def read_shape(weights: Mapping[str, Tensor], name: str, dimensions: int, source: str) -> tuple[int, ...]:
    """Shape of a tensor; ValueError if it is missing or has another number of dimensions."""
    if name not in weights:
        raise ValueError(f"{source} has no {name}; it begins with {', '.join(sorted(weights)[:3]) or 'nothing'}")
    shape = tuple(weights[name].shape)
    if len(shape) != dimensions:
        raise ValueError(f"{source}: {name} must have {dimensions} dimensions, got {list(shape)}")
    return shape


def count_blocks(weights: Mapping[str, Tensor], stem: str, source: str) -> int:
    """Number of blocks `stem`.0, `stem`.1, ...; ValueError if there are none or one is missing."""
    matches = (re.match(rf"{re.escape(stem)}\.(\d+)\.", name) for name in weights)
    found = {int(match.group(1)) for match in matches if match}
    missing = sorted(set(range(max(found, default=0) + 1)) - found)
    if missing:
        names = ", ".join(f"{stem}.{number}" for number in missing)
        raise ValueError(f"{source}: {names} missing, the file goes up to {stem}.{max(found, default=0)}")
    return len(found)


def read_encoder_config(
    weights: Mapping[str, Tensor], source: str, positions: Positions, hints: Hints, frames: int, crop: int
) -> EncoderConfig:
    """Config of an encoder with a tubelet embedding; heads from the hints or the table of published sizes."""
    width, _, tubelet, patch, _ = read_shape(weights, "patch_embed.proj.weight", 5, source)
    depth = count_blocks(weights, "blocks", source)
    hidden = read_shape(weights, "blocks.0.mlp.fc1.weight", 2, source)[0]
    size, heads, ratio = name_size(width, depth, hidden, positions, hints.heads, source)
    return EncoderConfig(
        size=size,
        width=width,
        depth=depth,
        heads=heads,
        mlp_ratio=ratio,
        patch=patch,
        tubelet=tubelet,
        frames=frames,
        crop=crop,
        positions=positions,
        rotary_order=hints.rotary_order,
    )


def name_size(
    width: int, depth: int, hidden: int, positions: Positions, heads: int, source: str
) -> tuple[SizeName, int, float]:
    """Name, heads and MLP ratio of an encoder; ValueError if the number of heads cannot be determined.

    The giant of I-JEPA and V-JEPA 1 has 16 heads, V-JEPA 2's 22; every other size is the same in all.
    """
    for name, (table_width, table_depth, table_heads, ratio) in SIZES.items():
        if (table_width, table_depth, round(table_width * ratio)) == (width, depth, hidden):
            published = 16 if name == "giant" and positions != "rotary" else table_heads
            chosen = heads or published
            return (name if chosen == table_heads else "custom"), chosen, ratio  # type: ignore[return-value]
    if not heads:
        near = [f"{name} has {size[1]} blocks" for name, size in SIZES.items() if size[0] == width]
        raise ValueError(
            f"{source} holds {depth} blocks of width {width} with an MLP of {hidden}, which is no published size"
            f"{f' ({near[0]}; are some missing?)' if near else ''}; if that is intended, give the number of heads"
        )
    return "custom", heads, hidden / width


def read_predictor_config(
    weights: Mapping[str, Tensor], source: str, encoder: EncoderConfig, heads: int
) -> PredictorConfig:
    """Config of a predictor; ValueError if it belongs to an encoder of another width."""
    width, encoder_width = read_shape(weights, "predictor_embed.weight", 2, source)
    if encoder_width != encoder.shape.width:
        raise ValueError(
            f"{source} takes features of width {encoder_width}, but the encoder has width {encoder.shape.width}"
        )
    depth = count_blocks(weights, "predictor_blocks", source)
    hidden = read_shape(weights, "predictor_blocks.0.mlp.fc1.weight", 2, source)[0]
    tokens = sum(name.startswith("mask_tokens.") for name in weights)
    return PredictorConfig(width, depth, heads or encoder.shape.heads, hidden / width, tokens)


def read_grid(table: Tensor, width: int, source: str) -> Grid:
    """Grid (t, h, w), h = w, whose sin-cos table is `table` [1, N, D].

    If there is none, a ValueError gives the largest difference from the closest candidate.
    """
    if table.ndim != 3 or table.shape[0] != 1 or table.shape[2] != width:
        raise ValueError(f"{source}: a position table must be [1, N, {width}], got {list(table.shape)}")
    tokens = table.shape[1]
    sides = [side for side in range(1, int(tokens**0.5) + 1) if tokens % side**2 == 0]
    differences = {}
    for side in sides:
        grid = (tokens // side**2, side, side)
        differences[grid] = float((sincos_table(width, grid) - table[0].float()).abs().max())
    best = min(differences, key=lambda grid: differences[grid])
    if not differences[best] <= TABLE_TOLERANCE:
        shape = "x".join(map(str, best))
        raise ValueError(
            f"{source} [1, {tokens}, {width}] is no sin-cos table: that of the nearest grid ({shape}) differs "
            f"by {differences[best]:.2g}, at most {TABLE_TOLERANCE:.0e} is allowed"
        )
    return best


def check_table(table: Tensor, width: int, grid: Grid, source: str, positions: Positions = "sincos") -> None:
    """Raise ValueError if `table` [1, N, D] is not the sin-cos table of `grid`."""
    expected = position_table(positions, width, grid)
    if table.shape != (1, *expected.shape):
        raise ValueError(f"{source}: the table must be [1, {len(expected)}, {width}], got {list(table.shape)}")
    difference = float((table[0].float() - expected).abs().max())
    if not torch.isfinite(table).all() or difference > TABLE_TOLERANCE:
        raise ValueError(f"{source} differs by {difference:.2g} from the sin-cos table of grid {grid}; it is damaged")
