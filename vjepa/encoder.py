"""The video vision transformer: tubelets in, one vector per token out.

B clips, C channels, T frames, H W pixels, (t, h, w) the token grid, N = t*h*w tokens, K selected tokens, D width.
Only the tokens in `index` are embedded, so hidden pixels cannot reach the output and cost nothing.
Several selections of a clip's tokens are concatenated and go through the blocks together; each attends only to itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from vjepa.blocks import Block, Kept, check_heads, initialise, run_block
from vjepa.patches import PatchEmbedding
from vjepa.positions import (
    Grid,
    Positions,
    RotaryOrder,
    Rotation,
    gather_rotation,
    interpolate_table,
    position_table,
    rotary_rotation,
)
from vjepa.registry import ENCODERS

SizeName = Literal["tiny", "small", "base", "large", "huge", "giant", "gigantic", "custom"]


class Shape(NamedTuple):
    """The dimensions of an encoder."""

    width: int  # channels per token
    depth: int  # blocks
    heads: int  # attention heads
    mlp_ratio: float  # hidden width of the MLP / width


# V-JEPA 1; giant as in V-JEPA 2, gigantic as in V-JEPA 2.1
SIZES: dict[str, Shape] = {
    "tiny": Shape(192, 12, 3, 4.0),
    "small": Shape(384, 12, 6, 4.0),
    "base": Shape(768, 12, 12, 4.0),
    "large": Shape(1024, 24, 16, 4.0),
    "huge": Shape(1280, 32, 16, 4.0),
    "giant": Shape(1408, 40, 22, 6144 / 1408),
    "gigantic": Shape(1664, 48, 26, 8192 / 1664),
}


@dataclass(frozen=True)
class EncoderConfig:
    """A named size, or `size: custom` with width, depth and heads. Explicit values override those of the named size.

    The effective values are in `shape`.
    """

    kind: str = field(default="vit", metadata={"registry": ENCODERS})  # a registered encoder
    size: SizeName = "large"
    width: int | None = None  # channels per token; None: from the size
    depth: int | None = None  # blocks; None: from the size
    heads: int | None = None  # attention heads; None: from the size
    mlp_ratio: float | None = None  # hidden width of the MLP / width; None: from the size
    patch: int = 16  # height and width of a patch, pixels
    tubelet: int = 2  # frames per token
    frames: int = 16  # of training clips; for other lengths positions are resampled (sincos) or extrapolated (rotary)
    crop: int = 224  # height and width of training clips, pixels
    positions: Positions = "sincos"  # sincos: 3D table (V-JEPA 1); sincos_2d: that of images (I-JEPA)
    rotary_order: RotaryOrder = "interleaved"  # `tiled` for weights compatible with V-JEPA 2
    init: Literal["scaled", "plain"] = (
        "scaled"  # scaled: outputs of block l divided by sqrt(2 l) (V-JEPA 2); plain: not (V-JEPA 1's trainer)
    )
    checkpoint_activations: bool = False  # recompute activations in the backward pass: less memory, a third more time
    checkpoint_keeps: Literal["nothing", "products"] = (
        "nothing"  # products: do not recompute matrix products and attention, for more memory and less time
    )

    def __post_init__(self) -> None:
        for name, usual in SIZES[self.size]._asdict().items() if self.size in SIZES else [("mlp_ratio", 4.0)]:
            if getattr(self, name) == usual:
                object.__setattr__(self, name, None)  # canonical form, so that equivalent configs compare equal
        shape = self.shape
        if min(shape[:3]) <= 0:
            raise ValueError(
                f"encoder.size {self.size!r} needs encoder.width, encoder.depth and encoder.heads above 0, "
                f"got {self.width}, {self.depth}, {self.heads}"
            )
        check_heads("encoder", shape.width, shape.heads, self.positions)
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
    def shape(self) -> Shape:
        """The effective dimensions: explicit values, else those of the size."""
        usual = SIZES.get(self.size, Shape(0, 0, 0, 4.0))
        return Shape(
            usual.width if self.width is None else self.width,
            usual.depth if self.depth is None else self.depth,
            usual.heads if self.heads is None else self.heads,
            usual.mlp_ratio if self.mlp_ratio is None else self.mlp_ratio,
        )

    @property
    def kept(self) -> Kept | None:
        """What a block keeps of its activations; None: all of them."""
        return self.checkpoint_keeps if self.checkpoint_activations else None

    @property
    def grid(self) -> Grid:
        """Token grid (t, h, w) of training clips."""
        side = self.crop // self.patch
        return max(1, self.frames // self.tubelet), side, side

    @classmethod
    def from_stored(cls, stored: Mapping[str, Any]) -> "EncoderConfig":
        """Build from the plain data stored in a file; TypeError for a field unknown to this version."""
        return cls(**stored)

    def describe(self) -> dict[str, Any]:
        """Plain data for a file, with the effective dimensions."""
        return {**asdict(self), **self.shape._asdict()}


class VideoEncoder(Protocol):
    """The interface that training needs from an encoder: clips in, one vector per token out. `Encoder` implements it.

    A custom encoder is an `nn.Module` registered with `@ENCODERS.register("name")` and built from an `EncoderConfig`.
    If it also has a method `layers` like `Encoder`, objectives that use several levels can train it, and all masks are
    encoded in one pass.
    """

    config: EncoderConfig

    def token_grid(self, video: Tensor) -> Grid:
        """Token grid (t, h, w) of video [B, C, T, H, W]; ValueError if its size is not divisible."""
        ...

    def __call__(self, video: Tensor, index: Tensor | None = None) -> Tensor:
        """Features of the tokens index [B, K] (None: all) of video [B, C, T, H, W] -> [B, K, D].

        With `index`, nothing outside these tokens may influence the output.
        """
        ...


def build_encoder(config: EncoderConfig) -> Any:
    """A newly initialised encoder of the kind that the config names."""
    return ENCODERS.find(config.kind)(config)


def encode_selections(encoder: Any, video: Tensor, selections: Sequence[Tensor]) -> list[Tensor]:
    """Features of several token selections, each index [B, K] encoded independently -> one [B, K, D] each."""
    return [levels[-1] for levels in encode_levels(encoder, video, selections, (-1,))]


def encode_levels(
    encoder: Any, video: Tensor, selections: Sequence[Tensor], levels: Sequence[int]
) -> list[list[Tensor]]:
    """Like `encode_selections`, after each of the blocks `levels`: for each selection, one [B, K, D] per level."""
    if not hasattr(encoder, "layers"):
        check_levels(encoder, levels)
        return [[encoder(video, index)] for index in selections]
    lengths = [index.shape[1] for index in selections]
    features = encoder.layers(video, levels, torch.cat(list(selections), 1), lengths)
    return [list(parts) for parts in zip(*(level.split(lengths, 1) for level in features), strict=True)]


def all_levels(encoder: Any, video: Tensor, levels: Sequence[int]) -> list[Tensor]:
    """Features of all tokens after each of the blocks `levels`: one [B, N, D] per level."""
    if hasattr(encoder, "layers"):
        found: list[Tensor] = encoder.layers(video, levels)
        return found
    check_levels(encoder, levels)
    return [encoder(video)]


def check_levels(encoder: Any, levels: Sequence[int]) -> None:
    """Raise ValueError if `levels` are requested that an encoder without `layers` cannot give."""
    if tuple(levels) not in ((-1,), (encoder.config.shape.depth - 1,)):
        raise ValueError(
            f"encoder.kind={encoder.config.kind} gives only its last level, but blocks {list(levels)} were requested; "
            "add a method `layers` like that of vjepa.encoder.Encoder"
        )


@ENCODERS.register("vit")
class Encoder(nn.Module):
    """Video ViT without class token (V-JEPA 1 and 2)."""

    block_class: ClassVar[type[Block]] = Block
    position_table: Tensor

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbedding(config.patch, config.tubelet, config.shape.width)
        self.blocks = nn.ModuleList(
            self.block_class(config.shape.width, config.shape.heads, config.shape.mlp_ratio)
            for _ in range(config.shape.depth)
        )
        self.norm = nn.LayerNorm(config.shape.width, eps=1e-6)
        table = position_table(config.positions, config.shape.width, config.grid)
        self.register_buffer("position_table", table, persistent=False)
        self.positions = PositionCache()
        initialise(self, config.init == "scaled")

    def forward(self, video: Tensor, index: Tensor | None = None, lengths: Sequence[int] = ()) -> Tensor:
        """Encode the tokens `index` [B, K] (None: all) of video [B, C, T, H, W] or images [B, C, H, W] -> [B, K, D].

        With `lengths` (sum K), `index` is a concatenation of several selections, each encoded independently.
        """
        return self.layers(video, (len(self.blocks) - 1,), index, lengths)[0]

    def layers(
        self, video: Tensor, which: Sequence[int], index: Tensor | None = None, lengths: Sequence[int] = ()
    ) -> list[Tensor]:
        """Normalised features [B, K, D] after each of the blocks `which` (0-based, negative from the end)."""
        wanted = self.find_blocks(which)
        x, rotation, _ = self.place(video, index)
        found, kept = {}, self.config.kept if self.training and torch.is_grad_enabled() else None
        for number, block in enumerate(self.blocks[: max(wanted) + 1]):
            x = run_block(block, x, rotation, lengths, kept)
            if number in wanted:
                found[number] = self.normalise(x, number)
        return [found[number] for number in wanted]

    def place(self, video: Tensor, index: Tensor | None) -> tuple[Tensor, Rotation | None, Grid]:
        """What the blocks start from: tokens [B, K, D] with their positions added, or the rotation; and the grid."""
        x, grid = self.embed(self.as_video(video), index)
        if self.config.positions == "rotary":
            return x, self.positions.rotation(self.config, grid, index, x), grid
        table = interpolate_table(self.position_table, self.config.grid, grid)
        return x + (table if index is None else table[index]), None, grid

    def find_blocks(self, which: Sequence[int]) -> list[int]:
        """Numbers of blocks (0-based) from numbers that may count from the end; ValueError for one there is not."""
        depth = len(self.blocks)
        wanted = [layer % depth for layer in which if -depth <= layer < depth]
        if len(wanted) != len(which):
            raise ValueError(
                f"layers must lie in [{-depth}, {depth - 1}] for an encoder of {depth} blocks, got {which}"
            )
        return wanted

    def embed(self, video: Tensor, index: Tensor | None) -> tuple[Tensor, Grid]:
        """Tokens [B, K, D] of video [B, C, T, H, W] before positions are added, and the token grid."""
        return self.patch_embed(video, index), self.patch_embed.grid(video)

    def normalise(self, x: Tensor, block: int) -> Tensor:
        """Features x [B, K, D] after block `block`, normalised."""
        normalised: Tensor = self.norm(x)
        return normalised

    def token_grid(self, video: Tensor) -> Grid:
        """Token grid of video [B, C, T, H, W]; ValueError if its size is not divisible."""
        return self.patch_embed.grid(self.as_video(video))

    def as_video(self, video: Tensor) -> Tensor:
        """Expand images [B, C, H, W] and one-frame clips to one tubelet of identical frames."""
        video = to_clips(video)
        return video.expand(-1, -1, self.config.tubelet, -1, -1) if video.shape[2] == 1 else video


def to_clips(video: Tensor) -> Tensor:
    """Clips [B, 3, T, H, W] as they are, images [B, 3, H, W] as clips of one frame; ValueError for anything else."""
    if video.ndim == 4:
        video = video.unsqueeze(2)
    if video.ndim != 5 or video.shape[1] != 3:
        raise ValueError(f"an encoder takes clips [B, 3, T, H, W] or images [B, 3, H, W], got {list(video.shape)}")
    return video


class PositionCache:
    """Cache of rotary tables, one per grid and device.

    `span`: height and width positions are scaled to [0, span] whatever the grid; None: they count cells.
    """

    def __init__(self, span: int | None = None) -> None:
        self.span = span
        self.tables: dict[tuple[int, Grid, str], Rotation] = {}

    def rotation(self, config: EncoderConfig, grid: Grid, index: Tensor | None, x: Tensor, heads: int = 0) -> Rotation:
        """Rotation of the tokens `index` for the features x [B, K, D], in attention's dtype."""
        head_width = x.shape[-1] // (heads or config.shape.heads)
        key = (head_width, grid, str(x.device))
        if key not in self.tables:
            self.tables[key] = rotary_rotation(head_width, grid, config.rotary_order, x.device, self.span)
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        return gather_rotation(self.tables[key], index, dtype)


def choose_levels(depth: int, levels: int) -> tuple[int, ...]:
    """Equally spaced blocks (0-based) of an encoder of `depth` blocks, including the last.

    Raises ValueError if there are more levels than blocks.
    """
    if levels > depth:
        raise ValueError(f"levels must be at most the encoder's {depth} blocks, got {levels}")
    return tuple(round(depth * (level + 1) / levels) - 1 for level in range(levels))


def levels_of(config: EncoderConfig, count: int) -> tuple[int, ...]:
    """`count` blocks (0-based), including the last, from which to take features of several depths.

    Those that the encoder's kind defines (a classmethod `levels_of(config, count)`), else equally spaced ones. Raises
    ValueError if the encoder does not have that many.
    """
    kind = ENCODERS.find(config.kind)
    if count > 1 and hasattr(kind, "levels_of"):
        own: tuple[int, ...] = kind.levels_of(config, count)
        return own
    return choose_levels(config.shape.depth, count)
