"""An encoder of your own: timm's image ViT on the first frame of every tubelet, its tokens attending over the clip.

vjepa train small data.path=SHARDS run.output=vit run.plugins=[examples/own_encoder.py] encoder.kind=timm_frames
"""

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vjepa.encoder import EncoderConfig
from vjepa.patches import gather_tokens
from vjepa.positions import Grid
from vjepa.registry import ENCODERS


@ENCODERS.register("timm_frames")
class TimmFrames(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config, shape = config, config.shape
        sizes = {"embed_dim": shape.width, "depth": shape.depth, "num_heads": shape.heads}
        self.vit = VisionTransformer(config.crop, config.patch, class_token=False, global_pool="avg", **sizes)
        self.vit.fc_norm, self.vit.head = nn.Identity(), nn.Identity()
        self.times = nn.Parameter(torch.zeros(config.frames // config.tubelet, 1, shape.width))

    def token_grid(self, video: Tensor) -> Grid:
        t, h, w = video.shape[2:]
        return t // self.config.tubelet, h // self.config.patch, w // self.config.patch

    def forward(self, video: Tensor, index: Tensor | None = None) -> Tensor:
        """video [B, C, T, H, W], index [B, K] of the tokens to see (None: all N) -> [B, K or N, D]."""
        frames = video[:, :, :: self.config.tubelet].transpose(1, 2)
        tokens = self.vit.patch_embed(frames.flatten(0, 1)) + self.vit.pos_embed
        tokens = (tokens.unflatten(0, frames.shape[:2]) + self.times).flatten(1, 2)
        return self.vit.norm(self.vit.blocks(tokens if index is None else gather_tokens(tokens, index)))
