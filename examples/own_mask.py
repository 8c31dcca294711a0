"""A mask of your own: hide a band of rows in every frame.

vjepa train small data.path=SHARDS run.output=runs/bands run.plugins=[examples/own_mask.py] masks.band.kind=band
"""

import torch
from torch import Tensor

from vjepa.masks import ClipRandom, MaskConfig, mask
from vjepa.positions import Grid


@mask("band")
def hide_band(config: MaskConfig, grid: Grid, random: ClipRandom) -> Tensor:
    """Hidden tokens bool [B, N]: half of the rows, starting at a random one. options.share: of the rows."""
    t, h, w = grid
    rows = torch.arange(t * h * w) // w % h
    start = (random.uniform(1) * h).long()  # [B, 1], the same for a clip wherever and whenever it is drawn
    return (rows - start) % h < round(h * config.options.get("share", 0.5))
