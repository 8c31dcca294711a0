"""A small decoder from features to pixels, for looking at predictions.

It sees the hidden tokens alone: the targets of visible tokens come from an encoder that has seen the whole clip, so
they would reveal the future. Features are taken as they are; normalising predictions first would undo their hedging.
B clips, M hidden tokens, W their width, N tokens of the grid (t, h, w), R = 3 * tubelet * patch**2 values of a token.
"""

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from vjepa.blocks import Block
from vjepa.patches import cut_patches, gather_tokens
from vjepa.positions import Grid, sincos_table

Kind = Literal["convolutions", "transformer"]


@dataclass(frozen=True)
class DecoderConfig:
    """A decoder for one token grid and one width of features."""

    kind: Kind  # convolutions over each step of the grid, or a transformer over all hidden tokens
    width: int  # channels inside
    depth: int  # layers
    features: int  # W
    grid: Grid  # (t, h, w)
    tubelet: int
    patch: int

    def __post_init__(self) -> None:
        if self.width < 8 or self.depth < 1:
            raise ValueError(f"a decoder needs width >= 8 and depth >= 1, got {self.width} and {self.depth}")

    @property
    def values(self) -> int:
        """R."""
        return 3 * self.tubelet * self.patch**2

    def describe(self) -> dict[str, Any]:
        """Plain data for a file."""
        return {**asdict(self), "grid": list(self.grid)}

    @classmethod
    def from_stored(cls, stored: dict[str, Any]) -> "DecoderConfig":
        """Build from the plain data of a file; TypeError for a field unknown to this version."""
        known = {entry.name for entry in fields(cls)}
        if unknown := set(stored) - known:
            raise TypeError(f"unknown fields {', '.join(sorted(unknown))}")
        return cls(**{**stored, "grid": tuple(stored["grid"])})


class PixelDecoder(nn.Module):
    """Features of hidden tokens -> their pixels."""

    positions: Tensor

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.embed = nn.Linear(config.features, width)
        self.register_buffer("positions", sincos_table(width, config.grid), persistent=False)
        if config.kind == "transformer":
            self.layers: nn.ModuleList = nn.ModuleList(
                Block(width, max(1, width // 32), 2.0) for _ in range(config.depth)
            )
        else:
            self.layers = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, config.values)

    def forward(self, features: Tensor, index: Tensor) -> Tensor:
        """features [B, M, W] of the tokens index [B, M] -> pixel values from 0 to 1, [B, M, R], not clamped."""
        x = self.embed(features.detach()) + self.positions[index]
        x = self._attend(x) if self.config.kind == "transformer" else self._convolve(x, index)
        pixels: Tensor = self.output(self.norm(x)) * 0.25 + 0.5
        return pixels

    def _attend(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, None)
        return x

    def _convolve(self, x: Tensor, index: Tensor) -> Tensor:
        """3x3 convolutions within each step; visible tokens are zero."""
        clips, _, width = x.shape
        t, h, w = self.config.grid
        where = index.unsqueeze(-1).expand(-1, -1, width)
        volume = x.new_zeros(clips, t * h * w, width).scatter(1, where, x)
        planes = volume.view(clips * t, h, w, width).permute(0, 3, 1, 2)
        for layer in self.layers:
            planes = planes + layer(functional.gelu(planes))
        found = planes.permute(0, 2, 3, 1).reshape(clips, t * h * w, width)
        return gather_tokens(found, index)


def cut_pixels(clips: Tensor, config: DecoderConfig) -> Tensor:
    """Pixels of every token of clips uint8 [B, T, H, W, 3], from 0 to 1: [B, N, R]."""
    return cut_patches(clips.permute(0, 4, 1, 2, 3).float() / 255, config.tubelet, config.patch)


def join_pixels(tokens: Tensor, config: DecoderConfig) -> Tensor:
    """Undo `cut_pixels`: [B, N, R] -> frames [B, T, H, W, 3]."""
    t, h, w = config.grid
    cut = tokens.view(len(tokens), t, h, w, 3, config.tubelet, config.patch, config.patch)
    return cut.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(
        len(tokens), t * config.tubelet, h * config.patch, w * config.patch, 3
    )


def paste(pixels: Tensor, index: Tensor, onto: Tensor) -> Tensor:
    """Tokens onto [B, N, R] with those at index [B, M] replaced by pixels [B, M, R], clamped to 0 ... 1."""
    return onto.scatter(1, index.unsqueeze(-1).expand(-1, -1, onto.shape[-1]), pixels.clamp(0, 1))


def decoding_loss(pixels: Tensor, truth: Tensor, config: DecoderConfig, gradient: float) -> Tensor:
    """Squared error of pixels [B, M, R], plus `gradient` times that of differences of neighbouring pixels -> scalar."""
    loss = functional.mse_loss(pixels, truth)
    if gradient:
        shape = (3, config.tubelet, config.patch, config.patch)
        error = (pixels - truth).unflatten(-1, shape)
        loss = loss + gradient * (error.diff(dim=-1).square().mean() + error.diff(dim=-2).square().mean())
    return loss


def build_decoder(config: DecoderConfig, seed: int) -> PixelDecoder:
    """A decoder whose initial weights depend only on the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PixelDecoder(config)
