"""Pull views of a clip together; nothing is predicted and no teacher is needed (LeJEPA, LeVJEPA, VICReg).

What keeps the representation from collapsing is the regulariser, on the projected views; with `attract: contrast` it
is the other clips of the batch. B clips, V views, N tokens, D width, E width of the projection.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn import functional

from vjepa.loss import contrastive_loss
from vjepa.masks import ClipRandom, MaskConfig, draw_masks
from vjepa.objectives.objective import Moment, Outcome

if TYPE_CHECKING:
    from vjepa.jepa import JEPA, JepaConfig

FIRST_KIND = 100  # of the random numbers of a view, beyond those of the masks


@dataclass(frozen=True)
class ViewsConfig:
    """How views are made of a clip, and what pulls them together. All frames of a view are changed alike."""

    wide: int = 2  # views of most of the frame; their mean is what every view is pulled to
    narrow: int = 4  # views of a part of the frame
    wide_scale: tuple[float, float] = (0.5, 1.0)  # area, fraction of the clip's
    narrow_scale: tuple[float, float] = (0.1, 0.5)  # area, fraction of the clip's
    narrow_crop: int = 0  # pixels; 0: half of data.crop
    keep: float = 0.3  # share of the tokens that a view keeps, drawn at random
    jitter: float = 0.4  # largest change of contrast and, in deviations, of brightness of each colour channel
    flip: float = 0.0  # probability; above 0 motion to the left and to the right become the same
    attract: Literal["invariance", "contrast"] = "invariance"
    temperature: float = 0.1  # of the contrast
    projection: int = 128  # width of what is compared

    def __post_init__(self) -> None:
        if self.wide < 1 or self.narrow < 0 or self.wide + self.narrow < 2:
            raise ValueError(f"views needs wide >= 1 and two views in all, got {self.wide} and {self.narrow}")
        for name in ("wide_scale", "narrow_scale"):
            low, high = getattr(self, name)
            if not 0 < low <= high <= 1:
                raise ValueError(f"views.{name} must satisfy 0 < low <= high <= 1, got {[low, high]}")
        if not 0 < self.keep < 1:
            raise ValueError(f"views.keep must lie in (0, 1), got {self.keep}")
        if self.attract == "contrast" and (self.wide != 2 or self.temperature <= 0):
            raise ValueError(
                f"views.attract=contrast needs wide = 2 and temperature > 0, got {self.wide} and {self.temperature}"
            )
        if self.projection < 1 or self.jitter < 0 or not 0 <= self.flip <= 1:
            raise ValueError(
                f"views needs projection >= 1, jitter >= 0 and flip in [0, 1], got {self.projection}, {self.jitter} "
                f"and {self.flip}"
            )


def match_views(model: JEPA, video: Tensor, moment: Moment) -> Outcome:
    """One step for video [B, C, T, H, W]: views are encoded, projected, pulled to the mean of the wide ones."""
    assert model.projector is not None
    config, grid = model.config.views, model.context_encoder.patch_embed.grid(video)
    rows = []
    for view in range(config.wide + config.narrow):
        shown = draw_view(config, video, moment.places, model.config, view)
        keep = MaskConfig(
            kind="random", hidden=(1 - config.keep, 1 - config.keep), keep=config.keep, predict=1 - config.keep
        )
        visible = model.context_encoder.patch_embed.grid(shown)
        kept = draw_masks(keep, visible, moment.places, model.config.seed, FIRST_KIND + 2 * view).context
        rows.append(model.projector(model.context_encoder(shown, kept).mean(1)).float())
    attraction = attract(config, torch.stack(rows))
    penalty = torch.stack([model.regulariser.judge(row, moment.position) for row in rows]).mean()
    parts = {"attraction": attraction.detach(), "regulariser": penalty.detach()}
    return Outcome(attraction + penalty, parts, grid)


def attract(config: ViewsConfig, rows: Tensor) -> Tensor:
    """What pulls the projected views rows [V, B, E] together -> scalar.

    invariance: mean squared distance to the mean of the wide views (LeJEPA). contrast: InfoNCE of the two wide ones.
    """
    if config.attract == "contrast":
        return contrastive_loss(rows[0], rows[1], config.temperature)
    return (rows - rows[: config.wide].mean(0)).square().mean()


def draw_view(config: ViewsConfig, video: Tensor, places: Tensor, jepa: JepaConfig, view: int) -> Tensor:
    """View number `view` of video [B, C, T, H, W]: a crop resized to its side S, colours changed -> [B, C, T, S, S]."""
    wide, patch = view < config.wide, jepa.encoder.patch
    side = video.shape[-1]
    if not wide:
        side = config.narrow_crop or max(patch, side // 2 // patch * patch)
    random = ClipRandom(jepa.seed * 1009 + FIRST_KIND + 2 * view + 1, places)
    extent = random.between(config.wide_scale if wide else config.narrow_scale).sqrt()  # of a side, [B]
    shift = (1 - extent).unsqueeze(1) * random.between((-1, 1), 2)  # of the centre, [B, 2]
    mirrored = torch.where(random.uniform() < config.flip, -extent, extent)
    matrix = video.new_zeros(len(video), 2, 3)
    matrix[:, 0, 0], matrix[:, 1, 1], matrix[:, :, 2] = mirrored, extent, shift
    frames = video.flatten(1, 2)  # the same crop of every frame and channel: [B, C*T, H, W]
    where = functional.affine_grid(matrix, [len(frames), 1, side, side], align_corners=False)
    cut = functional.grid_sample(frames, where, padding_mode="border", align_corners=False)
    contrast, brightness = random.between((-config.jitter, config.jitter), 2, 3).unbind(1)
    scaled = cut.unflatten(1, video.shape[1:3]) * (1 + contrast)[:, :, None, None, None]
    shown: Tensor = scaled + brightness[:, :, None, None, None]
    return shown
