"""A straightforward training step, written directly from the paper, as the baseline for speed.

Eager modules, a convolution over the whole clip, one call of encoder and predictor per mask, plain AdamW and a plain
EMA update. Loss and gradients equal those of `vjepa.jepa.JEPA`, whose weights it takes.
B clips, T frames, H W pixels; N tokens, K kept as context, M to predict, D width, P predictor width.
"""

import math
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from launch.bench.step import Clips
from launch.meter import Border
from launch.training.config import TrainConfig
from vjepa.encoder import EncoderConfig
from vjepa.jepa import JEPA, JepaConfig
from vjepa.loss import prediction_loss
from vjepa.masks import draw_masks
from vjepa.patches import gather_tokens
from vjepa.pixels import normalise
from vjepa.positions import Rotation, gather_rotation, rotary_rotation, rotate, sincos_table
from vjepa.predictor import PredictorConfig


def check_plain(config: JepaConfig) -> None:
    """Raise ValueError for a config that the plain step does not implement."""
    for field, found, required in (
        ("objective", config.objective, "masked"),
        ("encoder.kind", config.encoder.kind, "vit"),
        ("teacher.source", config.teacher.source, "average"),
        ("regulariser.variance", config.regulariser.variance, 0),
        ("regulariser.covariance", config.regulariser.covariance, 0),
        ("regulariser.sigreg", config.regulariser.sigreg, 0),
    ):
        if found != required:
            raise ValueError(
                f"--plain requires {field}={required}, got {found}: the plain step implements only V-JEPA 1 and 2"
            )


class PlainStep:
    """The whole step, with the schedules fixed at their first values."""

    keeps_casts = True  # autocast's default

    def __init__(self, config: TrainConfig, device: torch.device, source: JEPA | None = None) -> None:
        """Weights copied from `source`, else initialised from the config's seed; ValueError for another recipe."""
        check_plain(config.jepa)
        self.config = config.jepa
        source = source or JEPA(self.config)
        assert source.predictor is not None
        self.lr, self.weight_decay, self.momentum = source.lr_at(0), source.weight_decay_at(0), source.momentum_at(0)
        self.encoder = PlainEncoder(self.config.encoder)
        self.encoder.load_state_dict(source.context_encoder.state_dict())
        self.predictor = PlainPredictor(source.predictor.config, self.config.encoder)
        self.predictor.load_state_dict(source.predictor.state_dict())
        self.teacher = deepcopy(self.encoder).requires_grad_(False)
        for module in (self.encoder, self.predictor, self.teacher):
            module.to(device)
        parameters = [*self.encoder.parameters(), *self.predictor.parameters()]
        matrices = [parameter for parameter in parameters if parameter.ndim > 1]
        vectors = [parameter for parameter in parameters if parameter.ndim == 1]
        groups = [
            {"params": matrices, "weight_decay": self.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        optim = self.config.optim
        self.optimizer = torch.optim.AdamW(groups, lr=self.lr, betas=optim.betas, eps=optim.eps)

    def forward(self, batch: Clips) -> Tensor:
        """Mean over the masks of the distance between predictions and teacher features."""
        video = normalise(batch.clips)
        size = len(video)
        positions = torch.arange(batch.position - size, batch.position, device=video.device)
        with torch.no_grad():
            features = self.teacher(video).float()
            target = functional.layer_norm(features, features.shape[-1:])
        losses = []
        for kind, mask in enumerate(self.config.masks.values()):
            masks = draw_masks(mask, self.config.encoder.grid, positions, self.config.seed, kind)
            context = self.encoder(video, masks.context)
            prediction = self.predictor(context, masks.context, masks.target, kind)
            losses.append(prediction_loss(prediction, gather_tokens(target, masks.target), self.config.loss.power))
        return torch.stack(losses).mean()

    def clear(self) -> None:
        """Zero the gradients."""
        self.optimizer.zero_grad()

    def optimise(self) -> None:
        """Clip the gradient norm of each module, then an AdamW step."""
        optim = self.config.optim
        unclipped = not optim.clips_at(0, self.config.steps)
        for module in (self.encoder, self.predictor):
            nn.utils.clip_grad_norm_(module.parameters(), math.inf if unclipped else optim.clip)
        self.optimizer.step()

    @torch.no_grad()
    def follow(self) -> None:
        """The EMA update of the teacher, parameter by parameter."""
        for mine, theirs in zip(self.teacher.parameters(), self.encoder.parameters(), strict=True):
            mine.mul_(self.momentum).add_(theirs, alpha=1 - self.momentum)

    def borders(self) -> list[Border]:
        """The methods that delimit the parts of the forward pass."""
        return [
            (self.teacher, "forward", "teacher_forward"),
            (self.encoder, "forward", "context_forward"),
            (self.predictor, "forward", "predictor"),
        ]


class PlainBlock(nn.Module):
    """Pre-norm transformer block; parameter names as in `vjepa.blocks.Block`."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        hidden = round(width * mlp_ratio)
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, hidden), "act": nn.GELU(), "fc2": nn.Linear(hidden, width)})

    def forward(self, x: Tensor, rotation: Rotation | None) -> Tensor:
        """x [B, K, D] -> [B, K, D]."""
        batch, tokens, width = x.shape
        qkv = self.attn["qkv"](self.norm1(x)).reshape(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        attended = functional.scaled_dot_product_attention(query, key, value)
        x = x + self.attn["proj"](attended.transpose(1, 2).reshape(batch, tokens, width))
        hidden = self.mlp["act"](self.mlp["fc1"](self.norm2(x)))
        output: Tensor = x + self.mlp["fc2"](hidden)
        return output


class PositionEncoding(nn.Module):
    """Token positions: a sincos table to add, or rotary angles."""

    def __init__(self, config: EncoderConfig, width: int, heads: int) -> None:
        super().__init__()
        self.rotary = config.positions == "rotary"
        if self.rotary:
            tables = rotary_rotation(width // heads, config.grid, config.rotary_order)
        else:
            tables = (sincos_table(width, config.grid), torch.empty(0))
        self.register_buffer("first", tables[0], persistent=False)
        self.register_buffer("second", tables[1], persistent=False)

    def forward(self, x: Tensor, index: Tensor | None) -> tuple[Tensor, Rotation | None]:
        """x [B, K, D] of the tokens index [B, K] -> x, plus the table if sincos; the rotation if rotary."""
        first, second = self.get_buffer("first"), self.get_buffer("second")
        if not self.rotary:
            return x + (first if index is None else first[index]), None
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        return x, gather_rotation((first, second), index, dtype)


class PlainEncoder(nn.Module):
    """Video ViT; parameter names as in `vjepa.encoder.Encoder`."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        size = (config.tubelet, config.patch, config.patch)
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv3d(3, config.shape.width, kernel_size=size, stride=size)})
        self.positions = PositionEncoding(config, config.shape.width, config.shape.heads)
        self.blocks = nn.ModuleList(
            PlainBlock(config.shape.width, config.shape.heads, config.shape.mlp_ratio)
            for _ in range(config.shape.depth)
        )
        self.norm = nn.LayerNorm(config.shape.width, eps=1e-6)
        self.recompute = config.checkpoint_activations

    def forward(self, video: Tensor, index: Tensor | None = None) -> Tensor:
        """video [B, C, T, H, W], tokens index [B, K] (None: all) -> [B, K, D]."""
        x = self.patch_embed["proj"](video).flatten(2).transpose(1, 2)
        if index is not None:
            x = gather_tokens(x, index)
        x, rotation = self.positions(x, index)
        output: Tensor = self.norm(run_blocks(self.blocks, x, rotation, self.recompute))
        return output


class PlainPredictor(nn.Module):
    """Narrow transformer over context and mask tokens; parameter names as in `vjepa.predictor.Predictor`."""

    def __init__(self, config: PredictorConfig, encoder: EncoderConfig) -> None:
        super().__init__()
        heads = config.heads or encoder.shape.heads
        self.predictor_embed = nn.Linear(encoder.shape.width, config.width)
        tokens = (torch.zeros(1, 1, config.width) for _ in range(config.mask_tokens or 1))
        self.mask_tokens = nn.ParameterList(nn.Parameter(token) for token in tokens)
        self.positions = PositionEncoding(encoder, config.width, heads)
        self.predictor_blocks = nn.ModuleList(
            PlainBlock(config.width, heads, config.mlp_ratio) for _ in range(config.depth)
        )
        self.predictor_norm = nn.LayerNorm(config.width, eps=1e-6)
        self.predictor_proj = nn.Linear(config.width, encoder.shape.width)
        self.recompute, self.shared = encoder.checkpoint_activations, config.mask_token == "clip"

    def forward(self, context: Tensor, context_index: Tensor, target_index: Tensor, kind: int) -> Tensor:
        """context [B, K, D] at context_index [B, K], target_index [B, M] -> [B, M, D]."""
        visible = self.predictor_embed(context)
        hidden = self.mask_tokens[0 if self.shared else kind].to(visible.dtype).expand(*target_index.shape, -1)
        index = torch.cat([context_index, target_index], dim=1)
        x, rotation = self.positions(torch.cat([visible, hidden], dim=1), index)
        x = run_blocks(self.predictor_blocks, x, rotation, self.recompute)
        output: Tensor = self.predictor_proj(self.predictor_norm(x[:, context.shape[1] :]))
        return output


def run_blocks(blocks: nn.ModuleList, x: Tensor, rotation: Rotation | None, recompute: bool) -> Tensor:
    """x [B, K, D] through all blocks; with `recompute`, activations are recomputed in the backward pass."""
    for block in blocks:
        x = checkpoint(block, x, rotation, use_reentrant=False) if recompute else block(x, rotation)
    return x
