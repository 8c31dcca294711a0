"""V-JEPA 2.1's encoder: images and clips have their own patch embedding, and four levels their own norm.

A clip of one frame is an image: its tokens come from 2D patches of that frame instead of tubelets. Every token also
gets an embedding that says whether it belongs to an image or a clip. Height and width positions are scaled to those of
256 pixels, whatever the size of the input. B clips, T frames, N tokens, K selected tokens, D width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vjepa.batch import is_image
from vjepa.blocks import initialise
from vjepa.encoder import Encoder, EncoderConfig, PositionCache, choose_levels, to_clips
from vjepa.patches import PatchEmbedding
from vjepa.positions import Grid
from vjepa.predictor21 import ModalityPredictor, modality_embedding, position_span
from vjepa.registry import ENCODERS

LEVELS = 4
PUBLISHED_LEVELS = {48: (11, 23, 37, 47)}  # equal spacing would give block 35 in place of 37


@ENCODERS.register("vjepa21")
class ModalityEncoder(Encoder):
    """Video and image ViT with a norm for each level (V-JEPA 2.1). Its output is the last level."""

    has_modalities = True  # clips leave the image embedding without a gradient, and images that of clips
    predictor_class = ModalityPredictor

    def __init__(self, config: EncoderConfig) -> None:
        if (config.positions, config.rotary_order) != ("rotary", "interleaved"):
            raise ValueError(
                "encoder.kind=vjepa21 needs encoder.positions=rotary and encoder.rotary_order=interleaved, got "
                f"{config.positions} and {config.rotary_order}"
            )
        super().__init__(config)
        width = config.shape.width
        self.levels = self.levels_of(config)
        del self.norm  # the norms of the levels take its place
        self.norms_block = nn.ModuleList(nn.LayerNorm(width, eps=1e-6) for _ in self.levels)
        self.patch_embed_img = PatchEmbedding(config.patch, 1, width)
        self.video_mod_embed, self.img_mod_embed = modality_embedding(width), modality_embedding(width)
        self.positions = PositionCache(position_span(config.patch))
        initialise(self.patch_embed_img)

    @classmethod
    def levels_of(cls, config: EncoderConfig, count: int | None = None) -> tuple[int, ...]:
        """The blocks (0-based) that have a norm; ValueError if `count` is another number of them."""
        depth = config.shape.depth
        levels = PUBLISHED_LEVELS.get(depth) or choose_levels(depth, min(LEVELS, depth))
        if count not in (None, len(levels)):
            raise ValueError(
                f"encoder.kind=vjepa21 with {depth} blocks has norms for its {len(levels)} levels {list(levels)}; ask "
                f"for 1 (the last) or {len(levels)} levels, got {count}"
            )
        return levels

    def layers(
        self, video: Tensor, which: Sequence[int], index: Tensor | None = None, lengths: Sequence[int] = ()
    ) -> list[Tensor]:
        """See `Encoder`; ValueError for blocks that are not levels, which have no norm."""
        depth = len(self.blocks)
        if any(-depth <= block < depth and block % depth not in self.levels for block in which):
            raise ValueError(
                f"layers of encoder.kind=vjepa21 must be among its levels {list(self.levels)}, the only blocks with a "
                f"norm; got {list(which)}"
            )
        return super().layers(video, which, index, lengths)

    def embed(self, video: Tensor, index: Tensor | None) -> tuple[Tensor, Grid]:
        """See `Encoder`."""
        image = is_image(video)
        embedding = self.patch_embed_img if image else self.patch_embed
        modality = self.img_mod_embed if image else self.video_mod_embed
        x = embedding(video, index)
        return x + modality.to(x.dtype), embedding.grid(video)

    def normalise(self, x: Tensor, block: int) -> Tensor:
        """See `Encoder`."""
        normalised: Tensor = self.norms_block[self.levels.index(block)](x)
        return normalised

    def token_grid(self, video: Tensor) -> Grid:
        """See `Encoder`."""
        video = self.as_video(video)
        return (self.patch_embed_img if is_image(video) else self.patch_embed).grid(video)

    def as_video(self, video: Tensor) -> Tensor:
        """Images [B, C, H, W] as clips of one frame, which stay one frame."""
        return to_clips(video)


def join_levels(encoder: Encoder, video: Tensor, index: Tensor | None = None) -> Tensor:
    """Hierarchical features of video [B, C, T, H, W]: all levels of each token, shallow to deep -> [B, K, levels * D].

    Raises ValueError for an encoder without levels of its own.
    """
    if not isinstance(encoder, ModalityEncoder):
        raise ValueError(
            f"hierarchical features need an encoder with a norm for each level (encoder.kind=vjepa21), this one is "
            f"of kind {encoder.config.kind}; ask for its layers by number"
        )
    return torch.cat(encoder.layers(video, encoder.levels, index), -1)
