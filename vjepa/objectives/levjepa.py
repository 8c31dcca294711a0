"""Pull local views of a clip to its global view, and keep their distribution Gaussian: LeVJEPA (arXiv 2608.27395).

One encoder, a class token that reads the few tokens that are kept of a view, and a projector; no predictor, no
stop-gradient and no teacher. A moving average (teacher.source=average) is kept for evaluation and export only.
B clips, V local views, N tokens of a view, K of them kept, D width, E width of the projection.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from vjepa.batch import ClipGroup
from vjepa.config import JepaConfig
from vjepa.draws import ClipRandom
from vjepa.encoder import EncoderConfig, build_encoder
from vjepa.flops import embedding_flops, trained_encoder_flops
from vjepa.loss import in_full_precision
from vjepa.memory import Activations, trained_encoder_bytes, video_bytes
from vjepa.objectives.objective import Objective, StepContext, StepOutput
from vjepa.pixels import normalise
from vjepa.registry import ENCODERS, OBJECTIVES
from vjepa.regularise import draw_directions, gaussian_distance
from vjepa.targets import make_targets

LOCAL = "local"  # the batch's array of local views, uint8 [B, V, T, S, S, 3]
STREAM = 300  # random stream of the dropped tokens; masks use lower ones


@dataclass(frozen=True)
class LevjepaOptions:
    """Options of LeVJEPA; the defaults are the public config's."""

    keep: float = 0.05  # fraction of a view's tokens that is encoded, chosen at random over the whole clip
    hidden: int = 2048  # width inside the projector
    projection: int = 256  # width of the projected views
    count_local: int = 10  # local views of a clip, as data.local.count
    local_crop: int = 96  # their size in pixels, as data.local.crop

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise ValueError(f"levjepa.keep must lie in (0, 1], got {self.keep}")
        if min(self.hidden, self.projection, self.count_local, self.local_crop) < 1:
            raise ValueError(
                f"levjepa.hidden, projection, count_local and local_crop must be at least 1, got {self.hidden}, "
                f"{self.projection}, {self.count_local} and {self.local_crop}"
            )


class Projector(nn.Sequential):
    """Two layers with a batch norm between them: [n, D] -> [n, E]. Its statistics are those of all views of a batch."""

    def __init__(self, width: int, hidden: int, out: int) -> None:
        super().__init__(nn.Linear(width, hidden), nn.BatchNorm1d(hidden), nn.GELU(), nn.Linear(hidden, out))


@OBJECTIVES.register("levjepa")
class LevjepaObjective(Objective):
    """Mean squared distance of all views to the global one, and SIGReg on each view's projections."""

    Options = LevjepaOptions

    def __init__(self, config: JepaConfig, frozen: EncoderConfig | None) -> None:
        super().__init__()
        options = config.objective_options
        self.config, self.predictor = config, None
        self.context_encoder = build_encoder(config.encoder)
        self.projector = Projector(config.encoder.shape.width, options.hidden, options.projection)
        self.target_encoder = make_targets(config.teacher, self.context_encoder, frozen=frozen)

    @classmethod
    def check(cls, config: JepaConfig) -> None:
        """The encoder must have a class token, and the regulariser must be SIGReg alone."""
        if not hasattr(ENCODERS.find(config.encoder.kind), "read"):
            raise ValueError(
                f"objective=levjepa reads the class token, which encoder.kind={config.encoder.kind} has not; set "
                "encoder.kind=causal"
            )
        terms = config.regulariser
        others = (terms.variance, terms.covariance, terms.temporal, terms.expander, terms.balance, terms.motion)
        if terms.sigreg <= 0 or any(others) or terms.terms:
            raise ValueError(
                "objective=levjepa is kept from collapsing by SIGReg alone: regulariser.sigreg must be above 0, and "
                f"the other terms off; got {terms}"
            )

    def step(self, batch: ClipGroup, context: StepContext) -> StepOutput:
        """One step for B clips, each with V local views."""
        video, local = batch.video, batch.arrays.get(LOCAL)
        if local is None or local.ndim != 6:
            raise ValueError(
                "objective=levjepa needs local views, uint8 [B, V, T, S, S, 3], as the batch's array 'local'; set "
                f"data.local, or give them in your batch; got {None if local is None else list(local.shape)}"
            )
        options, (count, crop) = self.config.objective_options, (local.shape[1], local.shape[-2])
        if (count, crop) != (options.count_local, options.local_crop):
            raise ValueError(
                f"levjepa.count_local and levjepa.local_crop must be data.local.count and data.local.crop: the batch "
                f"has {count} views of {crop} pixels, the objective expects {options.count_local} of "
                f"{options.local_crop}"
            )
        random = ClipRandom(self.config.seed * 1009 + STREAM, context.samples)
        whole = self.read(video, random, 1).unsqueeze(0)
        parts = self.read(normalise(local.flatten(0, 1)), random, count).unflatten(0, local.shape[:2])
        views = torch.cat([whole, parts.transpose(0, 1)])  # [1 + V, B, D]
        projected = in_full_precision(self.projector(views.flatten(0, 1))).unflatten(0, views.shape[:2])
        attraction = (projected - projected[:1]).square().mean()
        penalty = self.config.regulariser.sigreg * self.gaussianity(projected, context.position)
        logged = {"attraction": attraction.detach(), "regulariser": penalty.detach()}
        return StepOutput(attraction + penalty, logged, self.context_encoder.token_grid(video))

    def read(self, video: Tensor, random: ClipRandom, views: int) -> Tensor:
        """The class token of a few tokens of video [B * views, C, T, H, W], in which views come first -> [.., D]."""
        tokens = math.prod(self.context_encoder.token_grid(video))
        kept = keep_tokens(self.config.objective_options.keep, tokens)
        order = random.uniform(views, tokens).flatten(0, 1).argsort(1)
        found: Tensor = self.context_encoder.read(video, order[:, :kept].sort(1).values)
        return found

    def gaussianity(self, projected: Tensor, draw: int) -> Tensor:
        """SIGReg's distance from a standard Gaussian of projected [1 + V, B, E], the mean over views -> scalar.

        Not centred, unlike the regulariser of other objectives: the mean shall be 0 as well.
        """
        terms = self.config.regulariser
        with torch.autocast(projected.device.type, enabled=False):
            directions = draw_directions(projected.shape[2], terms.slices, draw, projected.device)
            sliced = projected @ directions.to(projected.dtype)
            found = [gaussian_distance(view, terms.knots, over_ranks=terms.over_ranks) for view in sliced]
            return torch.stack(found).mean()

    def trained_modules(self) -> dict[str, nn.Module]:
        """Encoder and projector."""
        return {"context_encoder": self.context_encoder, "projector": self.projector}

    @classmethod
    def flops(cls, config: JepaConfig, clips: int) -> float:
        """For each view: encoder over the kept tokens and the class token, and its projection, forward and backward."""
        options, encoder = config.objective_options, config.encoder
        total = 0.0
        for tokens in tokens_of_views(config):
            seen = keep_tokens(options.keep, tokens) + 1
            total += trained_encoder_flops(encoder, seen) - 2 * embedding_flops(encoder, 1)
            total += 3 * 2 * options.hidden * (encoder.shape.width + options.projection)
        return total

    @classmethod
    def activations(cls, config: JepaConfig, clips: int, product: int) -> Activations | None:
        """See `Objective`: every view is encoded on its own; the projections are small."""
        options, encoder, total = config.objective_options, config.encoder, Activations()
        for number, tokens in enumerate(tokens_of_views(config)):
            shown = encoder if number == 0 else replace(encoder, crop=options.local_crop)
            total += video_bytes(shown, clips)
            total += trained_encoder_bytes(encoder, (keep_tokens(options.keep, tokens) + 1,), clips, product)
        return total

    @classmethod
    def follows_device_batch(cls, config: JepaConfig) -> bool:
        """See `Objective`: always true, because of the batch norm in the projector."""
        return True


def tokens_of_views(config: JepaConfig) -> list[int]:
    """Tokens of every view of a clip, before any are dropped; the global one first."""
    t, h, w = config.encoder.grid
    side = config.objective_options.local_crop // config.encoder.patch
    return [t * h * w] + [t * side * side] * config.objective_options.count_local


def keep_tokens(share: float, tokens: int) -> int:
    """How many of a view's tokens are encoded."""
    return max(1, round(share * tokens))
