"""The latent predictor: from the representation of what is visible to the representation of what is hidden.

B clips, K context tokens, M target tokens, D encoder width, P predictor width, (t, h, w) the token grid.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vjepa.positions import Grid, interpolate_table, sincos_table
from vjepa.vit import Block, EncoderConfig, PositionCache, check_heads, initialise, run_block


@dataclass(frozen=True)
class PredictorConfig:
    """A narrow transformer over context tokens and mask tokens."""

    width: int = 384  # channels of a token inside the predictor
    depth: int = 12  # blocks
    heads: int = 0  # attention heads; 0: as many as the encoder
    mlp_ratio: float = 4.0
    mask_tokens: int = 0  # learnable mask tokens, one a kind of mask; 0: as many as there are kinds

    def __post_init__(self) -> None:
        if min(self.width, self.depth) <= 0:
            raise ValueError(f"predictor.width and predictor.depth must be above 0, got {self.width}, {self.depth}")


class Predictor(nn.Module):
    """Predicts target representations from the context's, one call a kind of mask (V-JEPA 1 and 2)."""

    position_table: Tensor

    def __init__(self, config: PredictorConfig, encoder: EncoderConfig) -> None:
        super().__init__()
        heads = config.heads or encoder.heads
        check_heads("predictor", config.width, heads, encoder.positions)
        self.config, self.encoder_config, self.heads = config, encoder, heads
        self.predictor_embed = nn.Linear(encoder.width, config.width)
        tokens = (torch.zeros(1, 1, config.width) for _ in range(max(1, config.mask_tokens)))
        self.mask_tokens = nn.ParameterList(nn.Parameter(token) for token in tokens)
        self.predictor_blocks = nn.ModuleList(Block(config.width, heads, config.mlp_ratio) for _ in range(config.depth))
        self.predictor_norm = nn.LayerNorm(config.width, eps=1e-6)
        self.predictor_proj = nn.Linear(config.width, encoder.width)
        table = sincos_table(config.width, encoder.grid) if encoder.positions == "sincos" else torch.empty(0)
        self.register_buffer("position_table", table, persistent=False)
        self.positions = PositionCache()
        initialise(self)

    def forward(
        self, context: Tensor, context_index: Tensor, target_index: Tensor, kind: int = 0, grid: Grid | None = None
    ) -> Tensor:
        """Representations of the tokens `target_index` [B, M], given those of `context_index` [B, K].

        context [B, K, D] is the encoder's output; `kind` chooses the mask token; `grid` is the clip's token grid
        where it is not the one trained on. Returns [B, M, D].
        """
        grid = grid or self.encoder_config.grid
        visible: Tensor = self.predictor_embed(context)
        hidden = self.mask_tokens[kind].to(visible.dtype).expand(*target_index.shape, -1)
        x = torch.cat([visible, hidden], dim=1)
        index = torch.cat([context_index, target_index], dim=1)
        rotation = None
        if self.encoder_config.positions == "sincos":
            x = x + interpolate_table(self.position_table, self.encoder_config.grid, grid)[index]
        else:
            rotation = self.positions.rotation(self.encoder_config, grid, index, x, self.heads)
        for block in self.predictor_blocks:
            x = run_block(block, x, rotation, self.encoder_config.checkpoint_activations and self.training)
        prediction: Tensor = self.predictor_proj(self.predictor_norm(x[:, context.shape[1] :]))
        return prediction
