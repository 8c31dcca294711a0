"""Align views of a clip, without masked prediction or a teacher (LeJEPA, LeVJEPA, VICReg).

Collapse is prevented by the regulariser on the projected views or, with `attract: contrast`, by the other clips of the
batch as negatives. B clips, V views, N tokens, D width, E projection width.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from vjepa.batch import ClipGroup
from vjepa.config import JepaConfig
from vjepa.encoder import EncoderConfig, build_encoder
from vjepa.flops import trained_encoder_flops
from vjepa.loss import contrastive_loss
from vjepa.masks import ClipRandom, MaskConfig, draw_masks
from vjepa.memory import Activations, trained_encoder_bytes, video_bytes
from vjepa.objectives.objective import Objective, StepContext, StepOutput
from vjepa.positions import Grid
from vjepa.registry import OBJECTIVES
from vjepa.regularise import Expander, Regulariser
from vjepa.targets import make_targets

FIRST_KIND = 100  # first random stream of the views; the masks use lower ones


@dataclass(frozen=True)
class ViewsOptions:
    """How views are made and aligned. All frames of a view get the same augmentation."""

    wide: int = 2  # global views; their mean is the target of every view
    narrow: int = 4  # local views
    wide_scale: tuple[float, float] = (0.5, 1.0)  # area of a global view, fraction of the frame
    narrow_scale: tuple[float, float] = (0.1, 0.5)  # area of a local view, fraction of the frame
    narrow_crop: int | None = None  # size of a local view in pixels; None: half of data.crop
    keep: float = 0.3  # fraction of a view's tokens that is encoded, chosen at random
    jitter: float = 0.4  # maximum change of contrast (relative) and brightness (in standard deviations) of each channel
    flip: float = 0.0  # probability of a horizontal flip; above 0, left and right motion become indistinguishable
    attract: Literal["invariance", "contrast"] = "invariance"
    temperature: float = 0.1  # of the contrastive loss
    projection: int = 128  # width of the projected views

    def __post_init__(self) -> None:
        if self.wide < 1 or self.narrow < 0 or self.wide + self.narrow < 2:
            raise ValueError(f"views needs wide >= 1 and wide + narrow >= 2, got {self.wide} and {self.narrow}")
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


@OBJECTIVES.register("views")
class ViewsObjective(Objective):
    """Views are encoded, projected, and pulled towards the mean of the wide ones."""

    Options = ViewsOptions

    def __init__(self, config: JepaConfig, frozen: EncoderConfig | None) -> None:
        super().__init__()
        self.config, self.predictor = config, None
        self.context_encoder = build_encoder(config.encoder)
        width = config.objective_options.projection
        self.projector = Expander(config.encoder.shape.width, width)
        self.target_encoder = make_targets(config.teacher, self.context_encoder, frozen=frozen)
        self.regulariser = Regulariser(config.regulariser, width)

    @classmethod
    def check(cls, config: JepaConfig) -> None:
        """Reject regulariser options that need single tokens, and a second projection."""
        if config.regulariser.motion or config.regulariser.temporal:
            raise ValueError(
                "regulariser.motion and regulariser.temporal work on single tokens, but objective=views compares whole "
                "views; set them to false and 0"
            )
        if config.regulariser.expander:
            raise ValueError("regulariser.expander must be 0 with objective=views, which uses views.projection instead")

    def step(self, batch: ClipGroup, context: StepContext) -> StepOutput:
        """One step for B clips."""
        options, video = self.config.objective_options, batch.video
        rows = []
        for view in range(options.wide + options.narrow):
            shown = draw_view(options, video, context.samples, self.config, view)
            keep = MaskConfig(
                kind="random", hidden=(1 - options.keep, 1 - options.keep), keep=options.keep, predict=1 - options.keep
            )
            grid = self.context_encoder.token_grid(shown)
            kept = draw_masks(keep, grid, context.samples, self.config.seed, FIRST_KIND + 2 * view).context
            rows.append(self.projector(self.context_encoder(shown, kept).mean(1)).float())
        attraction = attract(options, torch.stack(rows))
        penalty = torch.stack([self.regulariser.score_rows(row, context.position) for row in rows]).mean()
        parts = {"attraction": attraction.detach(), "regulariser": penalty.detach()}
        return StepOutput(attraction + penalty, parts, self.context_encoder.token_grid(video))

    def trained_modules(self) -> dict[str, nn.Module]:
        """Encoder and projector."""
        return {"context_encoder": self.context_encoder, "projector": self.projector}

    @classmethod
    def flops(cls, config: JepaConfig, clips: int) -> float:
        """For each view: encoder over the kept tokens and projection of their mean, forward and backward."""
        width, total = config.objective_options.projection, 0.0
        for grid in view_grids(config.objective_options, config.encoder):
            kept = round(math.prod(grid) * config.objective_options.keep)
            projected = 2 * (config.encoder.shape.width * width + 2 * width**2)
            total += trained_encoder_flops(config.encoder, kept) + 3 * projected
        return total

    @classmethod
    def activations(cls, config: JepaConfig, clips: int, product: int) -> Activations | None:
        """See `Objective`: every view is encoded on its own; the projections are small."""
        total = video_bytes(config.encoder, clips)
        for number, grid in enumerate(view_grids(config.objective_options, config.encoder)):
            kept = round(math.prod(grid) * config.objective_options.keep)
            total += trained_encoder_bytes(config.encoder, (kept,), clips, product)
            if number < config.objective_options.wide:
                total += video_bytes(config.encoder, clips)
        return total

    @classmethod
    def follows_device_batch(cls, config: JepaConfig) -> bool:
        """See `Objective`: always true, since the terms are computed over a device's clips."""
        return True


def view_grids(options: ViewsOptions, encoder: EncoderConfig) -> list[Grid]:
    """Token grid of every view of a clip, as made by `draw_view`."""
    side = narrow_side(options, encoder.crop, encoder.patch) // encoder.patch
    return [encoder.grid] * options.wide + [(encoder.grid[0], side, side)] * options.narrow


def attract(config: ViewsOptions, rows: Tensor) -> Tensor:
    """Alignment loss of the projected views rows [V, B, E] -> scalar.

    invariance: mean squared distance to the mean of the wide views (LeJEPA). contrast: InfoNCE of the two wide views.
    """
    if config.attract == "contrast":
        return contrastive_loss(rows[0], rows[1], config.temperature)
    return (rows - rows[: config.wide].mean(0)).square().mean()


def narrow_side(config: ViewsOptions, side: int, patch: int) -> int:
    """Side of a narrow view in pixels, for clips with sides of `side` pixels."""
    return config.narrow_crop or max(patch, side // 2 // patch * patch)


def draw_view(config: ViewsOptions, video: Tensor, samples: Tensor, jepa: JepaConfig, view: int) -> Tensor:
    """View number `view` of video [B, C, T, H, W]: a crop resized to side S, with colour jitter -> [B, C, T, S, S].

    samples [B]: stream position of each clip.
    """
    wide = view < config.wide
    side = video.shape[-1] if wide else narrow_side(config, video.shape[-1], jepa.encoder.patch)
    random = ClipRandom(jepa.seed * 1009 + FIRST_KIND + 2 * view + 1, samples)
    extent = random.between(config.wide_scale if wide else config.narrow_scale).sqrt()  # fraction of the side, [B]
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
