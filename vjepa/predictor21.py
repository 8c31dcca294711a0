"""V-JEPA 2.1's predictor: tells images from clips, and projects visible and hidden tokens by layers of their own.

B clips, K context tokens, M target tokens, D encoder width, P predictor width, G levels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vjepa.blocks import initialise
from vjepa.encoder import EncoderConfig, PositionCache
from vjepa.masks import Masks
from vjepa.positions import Grid
from vjepa.predictor import Predictor, PredictorConfig

REFERENCE_CROP = 256  # pixels at which height and width positions count patches


class ModalityPredictor(Predictor):
    """Predicts hidden and visible tokens from G levels of the encoder (V-JEPA 2.1).

    With one level (distilled models) the features are embedded by one layer, with several by two. The released files
    have a mask token for each group of clips with the same number of frames; a run trains the first, for all masks.
    """

    def __init__(self, config: PredictorConfig, encoder: EncoderConfig, levels: int = 1, target_width: int = 0) -> None:
        super().__init__(config, encoder, levels, target_width)
        self.latent = (
            config.latent.dims is None
        )  # the format of the released files holds any number of levels and width of targets
        width = encoder.shape.width
        if levels > 1:
            layers = (nn.Linear(levels * width, width), nn.GELU(), nn.Linear(width, config.width))
            self.predictor_embed = nn.Sequential(*layers)
            initialise(self.predictor_embed)
        self.predictor_proj_context = nn.Linear(config.width, self.target_width)
        initialise(self.predictor_proj_context)
        self.video_mod_embed, self.img_mod_embed = modality_embedding(config.width), modality_embedding(config.width)
        self.positions = PositionCache(position_span(encoder.patch))
        for spare in list(self.mask_tokens)[1:]:
            spare.requires_grad_(False)

    def everywhere(
        self, context: Tensor, masks: Sequence[Masks], grid: Grid | None = None, image: bool = False
    ) -> list[Tensor]:
        """See `Predictor`; visible tokens have their own projection."""
        x = self.predictor_norm(self._transform(context, dict(enumerate(masks)), grid, image=image))
        halves = x.split([half.shape[1] for mask in masks for half in mask], 1)
        pairs = zip(halves[::2], halves[1::2], strict=True)
        return [
            torch.cat([self.predictor_proj_context(visible), self.predictor_proj(hidden)], 1)
            for visible, hidden in pairs
        ]

    def mask_token(self, kind: int, grid: Grid) -> Tensor:
        """See `Predictor`: the first token, whatever the mask."""
        token: Tensor = self.mask_tokens[0]
        return token

    def mark(self, x: Tensor, image: bool) -> Tensor:
        """See `Predictor`."""
        return x + (self.img_mod_embed if image else self.video_mod_embed).to(x.dtype)


def modality_embedding(width: int) -> nn.Parameter:
    """What is added to every token of an image or of a clip: [1, 1, width], almost 0 at first."""
    return nn.Parameter(1e-6 * torch.randn(1, 1, width))


def position_span(patch: int) -> int:
    """Position of the last patch of a side: 15 for patches of 16 pixels, 17 for 14."""
    return REFERENCE_CROP // patch - 1
