"""The video vision transformer: tubelets in, one vector a token out.

B clips, C channels, T frames, H W pixels, (t, h, w) the token grid, N = t*h*w tokens, K tokens kept, D width.
Only the tokens named by `index` are ever embedded, so a hidden pixel cannot reach the output, and costs nothing.
Several selections of the same clip lie in one row and go through the blocks together, attending each to itself alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from vjepa.blocks import Block, check_heads, initialise, run_block
from vjepa.positions import (
    Grid,
    RotaryOrder,
    Rotation,
    gather_rotation,
    interpolate_table,
    rotary_rotation,
    sincos_table,
)

SizeName = Literal["tiny", "small", "base", "large", "huge", "giant", "custom"]

# width, depth, heads, mlp ratio (V-JEPA 1; giant as in V-JEPA 2)
SIZES: dict[str, tuple[int, int, int, float]] = {
    "tiny": (192, 12, 3, 4.0),
    "small": (384, 12, 6, 4.0),
    "base": (768, 12, 12, 4.0),
    "large": (1024, 24, 16, 4.0),
    "huge": (1280, 32, 16, 4.0),
    "giant": (1408, 40, 22, 6144 / 1408),
}


@dataclass(frozen=True)
class EncoderConfig:
    """A named size, or `size: custom` with width, depth and heads; a number given beside a name replaces the name's."""

    size: SizeName = "large"
    width: int = 0  # channels of a token; 0: as the size says
    depth: int = 0  # blocks; 0: as the size says
    heads: int = 0  # attention heads; 0: as the size says
    mlp_ratio: float = 0.0  # hidden width of the MLP over width; 0: as the size says
    patch: int = 16  # pixels, both sides
    tubelet: int = 2  # frames a token spans
    frames: int = 16  # of the clips it is trained on; other lengths are resampled (sincos) or extrapolated (rotary)
    crop: int = 224  # pixels of the clips it is trained on
    positions: Literal["sincos", "rotary"] = "sincos"
    rotary_order: RotaryOrder = "interleaved"  # `tiled` to be weight-compatible with V-JEPA 2
    checkpoint_activations: bool = False  # recompute the blocks in the backward pass: less memory, a third more time

    def __post_init__(self) -> None:
        width, depth, heads, mlp_ratio = SIZES.get(self.size, (0, 0, 0, 4.0))
        object.__setattr__(self, "width", self.width or width)
        object.__setattr__(self, "depth", self.depth or depth)
        object.__setattr__(self, "heads", self.heads or heads)
        object.__setattr__(self, "mlp_ratio", self.mlp_ratio or mlp_ratio)
        if min(self.width, self.depth, self.heads) <= 0:
            raise ValueError(
                f"encoder.size {self.size!r} needs encoder.width, encoder.depth and encoder.heads above 0, "
                f"got {self.width}, {self.depth}, {self.heads}"
            )
        check_heads("encoder", self.width, self.heads, self.positions)
        if self.crop % self.patch:
            raise ValueError(
                f"data.crop must be a multiple of encoder.patch ({self.patch} pixels), got {self.crop}; "
                f"the nearest are {self.crop // self.patch * self.patch} and {-(-self.crop // self.patch) * self.patch}"
            )
        if self.frames % self.tubelet and self.frames != 1:
            raise ValueError(
                f"data.frames must be 1 (images) or a multiple of encoder.tubelet ({self.tubelet}), got {self.frames}"
            )

    @property
    def grid(self) -> Grid:
        """Token grid (t, h, w) of the clips it is trained on."""
        side = self.crop // self.patch
        return max(1, self.frames // self.tubelet), side, side


def gather_tokens(x: Tensor, index: Tensor) -> Tensor:
    """Pick tokens: x [B, N, D], index [B, K] -> [B, K, D]."""
    return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def cut_patches(video: Tensor, tubelet: int, patch: int) -> Tensor:
    """Tubelets of a clip, a row each: video [B, C, T, H, W] -> [B, N, C * tubelet * patch * patch]."""
    cut = video.unflatten(4, (-1, patch)).unflatten(3, (-1, patch)).unflatten(2, (-1, tubelet))
    patches: Tensor = cut.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).flatten(1, 3)
    return patches


class PatchEmbedding(nn.Module):
    """Tubelets to vectors. The weight has a 3D convolution's shape; the product is one matrix multiplication."""

    def __init__(self, patch: int, tubelet: int, width: int) -> None:
        super().__init__()
        self.patch, self.tubelet = patch, tubelet
        size = (tubelet, patch, patch)
        self.proj = nn.Conv3d(3, width, kernel_size=size, stride=size)

    def grid(self, video: Tensor) -> Grid:
        """Token grid of video [B, C, T, H, W]; ValueError where it does not divide."""
        frames, height, width = video.shape[2:]
        if frames % self.tubelet or height % self.patch or width % self.patch:
            raise ValueError(
                f"a clip must have a multiple of {self.tubelet} frames and sides that are multiples of {self.patch} "
                f"pixels, got {frames} frames of {height}x{width}"
            )
        return frames // self.tubelet, height // self.patch, width // self.patch

    def forward(self, video: Tensor, index: Tensor | None = None) -> Tensor:
        """video [B, C, T, H, W], index [B, K] or None -> [B, K or N, D]."""
        self.grid(video)  # says where the clip does not divide
        patches = cut_patches(video, self.tubelet, self.patch)
        if index is not None:
            patches = gather_tokens(patches, index)
        embedded: Tensor = functional.linear(patches, self.proj.weight.flatten(1), self.proj.bias)
        return embedded


class Encoder(nn.Module):
    """Video ViT without class token (V-JEPA 1 and 2)."""

    position_table: Tensor

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbedding(config.patch, config.tubelet, config.width)
        self.blocks = nn.ModuleList(Block(config.width, config.heads, config.mlp_ratio) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        table = sincos_table(config.width, config.grid) if config.positions == "sincos" else torch.empty(0)
        self.register_buffer("position_table", table, persistent=False)
        self.positions = PositionCache()
        initialise(self)

    def forward(self, video: Tensor, index: Tensor | None = None, lengths: Sequence[int] = ()) -> Tensor:
        """Encode the tokens `index` [B, K] (None: all) of video [B, C, T, H, W] or images [B, C, H, W] -> [B, K, D].

        With `lengths`, which add up to K, `index` holds several selections, each encoded as if it were alone.
        """
        return self.layers(video, (len(self.blocks) - 1,), index, lengths)[0]

    def layers(
        self, video: Tensor, which: Sequence[int], index: Tensor | None = None, lengths: Sequence[int] = ()
    ) -> list[Tensor]:
        """Normalised features [B, K, D] after each of the blocks `which` (0-based, negative from the end)."""
        depth = len(self.blocks)
        wanted = [layer % depth for layer in which if -depth <= layer < depth]
        if len(wanted) != len(which):
            raise ValueError(
                f"layers must lie in [{-depth}, {depth - 1}] for an encoder of {depth} blocks, got {which}"
            )
        video = self.as_video(video)
        grid = self.patch_embed.grid(video)
        x = self.patch_embed(video, index)
        rotation = None
        if self.config.positions == "sincos":
            table = interpolate_table(self.position_table, self.config.grid, grid)
            x = x + (table if index is None else table[index])
        else:
            rotation = self.positions.rotation(self.config, grid, index, x)
        found = {}
        for number, block in enumerate(self.blocks[: max(wanted) + 1]):
            x = run_block(block, x, rotation, lengths, self.config.checkpoint_activations and self.training)
            if number in wanted:
                found[number] = self.norm(x)
        return [found[number] for number in wanted]

    def as_video(self, video: Tensor) -> Tensor:
        """Images [B, C, H, W] and one-frame clips become one tubelet of equal frames."""
        if video.ndim == 4:
            video = video.unsqueeze(2)
        if video.ndim != 5 or video.shape[1] != 3:
            raise ValueError(f"an encoder takes clips [B, 3, T, H, W] or images [B, 3, H, W], got {list(video.shape)}")
        return video.expand(-1, -1, self.config.tubelet, -1, -1) if video.shape[2] == 1 else video


class PositionCache:
    """Rotary tables, made once for each grid and device."""

    def __init__(self) -> None:
        self.tables: dict[tuple[int, Grid, str], Rotation] = {}

    def rotation(self, config: EncoderConfig, grid: Grid, index: Tensor | None, x: Tensor, heads: int = 0) -> Rotation:
        """Rotation of the tokens `index` for the features x [B, K, D], in the type that attention computes in."""
        head_width = x.shape[-1] // (heads or config.heads)
        key = (head_width, grid, str(x.device))
        if key not in self.tables:
            self.tables[key] = rotary_rotation(head_width, grid, config.rotary_order, x.device)
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        return gather_rotation(self.tables[key], index, dtype)


def choose_levels(depth: int, levels: int) -> tuple[int, ...]:
    """Equally spaced blocks (0-based) of an encoder of `depth` blocks, the last among them.

    Raises ValueError for more levels than blocks.
    """
    if levels > depth:
        raise ValueError(f"dense.levels must be at most the encoder's {depth} blocks, got {levels}")
    return tuple(round(depth * (level + 1) / levels) - 1 for level in range(levels))
