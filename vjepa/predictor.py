"""The latent predictor: from representations of visible tokens to representations of hidden tokens.

B clips, K context tokens, M target tokens, D encoder width, P predictor width, (t, h, w) the token grid.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vjepa.blocks import Block, Mlp, check_heads, initialise, run_block
from vjepa.encoder import EncoderConfig, PositionCache
from vjepa.latent import LatentConfig, LatentVariable, Posterior
from vjepa.masks import Masks
from vjepa.patches import gather_tokens
from vjepa.positions import Grid, interpolate_table, position_table
from vjepa.registry import ENCODERS


@dataclass(frozen=True)
class PredictorConfig:
    """A narrow transformer over context tokens and mask tokens."""

    width: int = 384  # channels of a token inside the predictor
    depth: int = 12  # blocks; with 0, each hidden token is predicted from its position alone
    heads: int | None = None  # attention heads; None: the same number as the encoder
    mlp_ratio: float = 4.0
    mask_tokens: int | None = None  # learnable mask tokens; None: one per mask, and with token_frames per length
    mask_token: Literal["mask", "clip"] = (
        "mask"  # mask: each mask has its own token (V-JEPA 1); clip: all masks of a clip share one (V-JEPA 2)
    )
    token_frames: tuple[int, ...] = ()  # mask_token=clip: frames of the clips that use each token; empty: all the first
    latent: LatentConfig = field(default_factory=LatentConfig)  # a variable for what the context does not determine

    def __post_init__(self) -> None:
        object.__setattr__(self, "token_frames", tuple(self.token_frames))  # a list when read from json
        if self.token_frames and self.mask_token != "clip":
            raise ValueError(
                f"predictor.token_frames needs predictor.mask_token=clip, got {list(self.token_frames)} and "
                f"{self.mask_token}"
            )
        if (self.heads is not None and self.heads < 1) or (self.mask_tokens is not None and self.mask_tokens < 1):
            raise ValueError(
                f"predictor.heads and predictor.mask_tokens must be at least 1 or null, got {self.heads} and "
                f"{self.mask_tokens}"
            )
        if self.width < 1 or self.depth < 0:
            raise ValueError(f"predictor needs width >= 1 and depth >= 0, got {self.width} and {self.depth}")

    def describe(self) -> dict[str, Any]:
        """Plain data for a file; `latent` only where there is a variable."""
        described = asdict(self)
        if self.latent.dims is None:
            del described["latent"]
        return described

    @classmethod
    def from_stored(cls, stored: Mapping[str, Any]) -> "PredictorConfig":
        """Build from the plain data stored in a file; TypeError for a field unknown to this version."""
        return cls(**{**stored, "latent": LatentConfig(**stored.get("latent", {}))})


class Predictor(nn.Module):
    """Predicts target representations from the context's, with a mask token at every hidden position (V-JEPA 1 and 2).

    With several `levels`, the input is the concatenated features of that many encoder blocks, embedded by a two-layer
    MLP (V-JEPA 2.1). `target_width` is the width of the targets; 0: that of the input.
    """

    position_table: Tensor

    def __init__(self, config: PredictorConfig, encoder: EncoderConfig, levels: int = 1, target_width: int = 0) -> None:
        super().__init__()
        heads = config.heads or encoder.shape.heads
        check_heads("predictor", config.width, heads, encoder.positions)
        self.config, self.encoder_config, self.heads = config, encoder, heads
        self.levels, self.target_width = levels, target_width or levels * encoder.shape.width
        # As published: predicts the encoder's own final features, and nothing else.
        self.latent = levels == 1 and target_width in (0, encoder.shape.width) and config.latent.dims is None
        width = levels * encoder.shape.width
        single = nn.Linear(encoder.shape.width, config.width)
        self.predictor_embed: nn.Module = single if levels == 1 else Mlp(width, encoder.shape.width, config.width)
        tokens = (torch.zeros(1, 1, config.width) for _ in range(config.mask_tokens or 1))
        self.mask_tokens = nn.ParameterList(nn.Parameter(token) for token in tokens)
        self.predictor_blocks = nn.ModuleList(Block(config.width, heads, config.mlp_ratio) for _ in range(config.depth))
        self.predictor_norm = nn.LayerNorm(config.width, eps=1e-6)
        self.predictor_proj = nn.Linear(config.width, target_width or width)
        has_variable = config.latent.dims is not None
        self.variable = LatentVariable(config.latent, config.width, target_width or width) if has_variable else None
        table = position_table(encoder.positions, config.width, encoder.grid)
        self.register_buffer("position_table", table, persistent=False)
        self.positions = PositionCache()
        initialise(self, encoder.init == "scaled")
        if self.variable is not None:
            self.variable.start_informative()

    def forward(
        self,
        context: Tensor,
        context_index: Tensor,
        target_index: Tensor,
        kind: int = 0,
        grid: Grid | None = None,
        latent: Tensor | None = None,
        image: bool = False,
    ) -> Tensor:
        """Predict the tokens `target_index` [B, M] from the tokens `context_index` [B, K] -> [B, M, D].

        context [B, K, D] is the encoder's output; `kind` selects the mask token; `grid` is the clip's token grid
        (None: the grid of the encoder's config); `latent` [B, Z] is the variable z (None: its prior mean, zero);
        `image`: the tokens are those of an image.
        """
        latents = None if latent is None else [latent]
        return self._predict(context, {kind: Masks(context_index, target_index)}, grid, True, latents, image)[0]

    def hidden(
        self,
        context: Tensor,
        masks: Sequence[Masks],
        grid: Grid | None = None,
        latents: Sequence[Tensor] | None = None,
        image: bool = False,
    ) -> list[Tensor]:
        """Predict the hidden tokens of each mask, all masks in one pass -> [B, M, D] each.

        context [B, sum of K, D]: the encoded context tokens of each mask, concatenated; latents: [B, Z] for each mask.
        """
        return self._predict(context, dict(enumerate(masks)), grid, True, latents, image)

    def infer(
        self, target: Tensor, context: Tensor, masks: Sequence[Masks], grid: Grid | None = None
    ) -> list[Posterior]:
        """The distribution of z for each mask, from targets of all tokens [B, N, W] and the context as in `hidden`.

        ValueError without a variable.
        """
        if self.variable is None:
            raise ValueError("this predictor has no latent variable; set predictor.latent.dims")
        parts = self.predictor_embed(context).split([mask.context.shape[1] for mask in masks], 1)
        grid = grid or self.encoder_config.grid
        return [
            self.variable.infer(gather_tokens(target, mask.target), mask.target, part, grid)
            for mask, part in zip(masks, parts, strict=True)
        ]

    def everywhere(
        self, context: Tensor, masks: Sequence[Masks], grid: Grid | None = None, image: bool = False
    ) -> list[Tensor]:
        """Like `hidden`, but for visible and hidden tokens, in this order: [B, K + M, D] each."""
        return self._predict(context, dict(enumerate(masks)), grid, False, None, image)

    def mark(self, x: Tensor, image: bool) -> Tensor:
        """Tokens x [B, N, P] before positions are added; predictors that tell images from clips mark them here."""
        return x

    def mask_token(self, kind: int, grid: Grid) -> Tensor:
        """The token [1, 1, P] of hidden positions under mask number `kind` of a clip with this token grid.

        Raises ValueError if the clip's length is not in token_frames.
        """
        lengths, frames = self.config.token_frames, grid[0] * self.encoder_config.tubelet
        if lengths and frames not in lengths:
            raise ValueError(
                f"predictor.token_frames must have the length of every clip, got a clip of {frames} frames and "
                f"{list(lengths)}"
            )
        shared = lengths.index(frames) if lengths else 0
        token: Tensor = self.mask_tokens[kind if self.config.mask_token == "mask" else shared]
        return token

    def _predict(
        self,
        context: Tensor,
        masks: Mapping[int, Masks],
        grid: Grid | None,
        hidden_only: bool,
        latents: Sequence[Tensor] | None,
        image: bool,
    ) -> list[Tensor]:
        if latents is not None and self.variable is None:
            raise ValueError(
                "this predictor has no latent variable, so it takes no `latent`; set predictor.latent.dims"
            )
        x = self._transform(context, masks, grid, latents, image)
        lengths = [mask.target.shape[1] if hidden_only else _length(mask) for mask in masks.values()]
        if hidden_only:
            halves = [half.shape[1] for mask in masks.values() for half in mask]
            x = torch.cat(x.split(halves, 1)[1::2], 1)
        prediction: Tensor = self.predictor_proj(self.predictor_norm(x))
        return list(prediction.split(lengths, 1))

    def _transform(
        self,
        context: Tensor,
        masks: Mapping[int, Masks],
        grid: Grid | None,
        latents: Sequence[Tensor] | None = None,
        image: bool = False,
    ) -> Tensor:
        """Output of the blocks for the context and mask tokens of each mask: [B, sum of K + M, P]."""
        grid = grid or self.encoder_config.grid
        embedded: Tensor = self.predictor_embed(context)
        segments = []
        parts = embedded.split([mask.context.shape[1] for mask in masks.values()], 1)
        for number, (visible, (kind, mask)) in enumerate(zip(parts, masks.items(), strict=True)):
            token = self.mask_token(kind, grid).to(visible.dtype)
            if self.variable is not None:
                z = visible.new_zeros(len(visible), self.variable.dims) if latents is None else latents[number]
                token = token + self.variable(z).to(visible.dtype)
            segments += [visible, token.expand(*mask.target.shape, -1)]
        x = self.mark(torch.cat(segments, 1), image)
        index = torch.cat([half for mask in masks.values() for half in mask], 1)
        rotation = None
        if self.encoder_config.positions != "rotary":
            x = x + interpolate_table(self.position_table, self.encoder_config.grid, grid)[index]
        else:
            rotation = self.positions.rotation(self.encoder_config, grid, index, x, self.heads)
        lengths = [_length(mask) for mask in masks.values()]
        kept = self.encoder_config.kept if self.training and torch.is_grad_enabled() else None
        for block in self.predictor_blocks:
            x = run_block(block, x, rotation, lengths, kept)
        return x


def build_predictor(
    config: PredictorConfig, encoder: EncoderConfig, levels: int = 1, target_width: int = 0
) -> Predictor:
    """A newly initialised predictor for an encoder of this kind: its `predictor_class`, else `Predictor`."""
    kind = getattr(ENCODERS.find(encoder.kind), "predictor_class", Predictor)
    built: Predictor = kind(config, encoder, levels, target_width)
    return built


def _length(mask: Masks) -> int:
    """Tokens per clip in the predictor: K + M."""
    return mask.context.shape[1] + mask.target.shape[1]
