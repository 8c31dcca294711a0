"""What keeps the representation from collapsing without negatives: VICReg's terms and SIGReg.

B clips, K context tokens, N tokens of the grid, D width, E width after the expander, n rows, S slices, J knots.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from vjepa.positions import Grid
from vjepa.ranks import sum_over_ranks
from vjepa.registry import REGULARISERS

VICREG = 1 / 25  # covariance : variance of VICReg
MOVING, STILL = 0.02, 0.02  # frame difference above which a token moves; weight of one that does not


@dataclass(frozen=True)
class RegulariserConfig:
    """Weights of the terms (0: off, as V-JEPA is published) and what they look at."""

    variance: float = 0.0  # VICReg: every channel keeps a deviation of 1
    covariance: float = 0.0  # VICReg: channels say different things
    sigreg: float = 0.0  # LeJEPA: every direction is distributed like a Gaussian
    terms: dict[str, float] = field(default_factory=dict)  # weights of registered terms of your own
    temporal: float = (
        0.0  # every channel keeps a deviation over the time of a clip, as decorrelated as `covariance` asks
    )
    temporal_margin: float = 0.5  # that deviation
    over: Literal["tokens", "pooled"] = (
        "tokens"  # tokens: less the mean of their position over the batch; pooled: the mean token of a clip
    )
    motion: bool = False  # tokens that move count 51 times as much as those that stand still
    over_ranks: bool = False  # statistics of the clips of all ranks; else of each rank's own
    expander: int = 0  # width of a three-layer projection in front of the terms; 0: none
    slices: int = 256  # random directions a step (SIGReg)
    knots: int = 17  # points at which the characteristic function is read (SIGReg)

    def __post_init__(self) -> None:
        if min(self.variance, self.covariance, self.sigreg, self.temporal, self.expander) < 0:
            raise ValueError(
                f"regulariser.variance, covariance, sigreg, temporal and expander must be at least 0, got "
                f"{self.variance}, {self.covariance}, {self.sigreg}, {self.temporal} and {self.expander}"
            )
        for name, weight in self.terms.items():
            REGULARISERS.find(name)
            if weight < 0:
                raise ValueError(f"regulariser.terms.{name} must be at least 0, got {weight}")
        if self.terms and self.over_ranks:
            raise ValueError("regulariser.terms look at a device's own clips: set regulariser.over_ranks=false")
        if self.expander and not self.active:
            raise ValueError("regulariser.expander needs a term behind it: set variance, covariance or sigreg above 0")
        if self.slices < 1 or self.knots < 2:
            raise ValueError(f"regulariser needs slices >= 1 and knots >= 2, got {self.slices} and {self.knots}")
        if self.temporal_margin <= 0:
            raise ValueError(f"regulariser.temporal_margin must be above 0, got {self.temporal_margin}")
        if self.over == "pooled" and (self.temporal or self.motion):
            raise ValueError(
                "regulariser.temporal and regulariser.motion look at single tokens: they need regulariser.over=tokens"
            )

    @property
    def active(self) -> bool:
        """Is any term on?"""
        return max(self.variance, self.covariance, self.sigreg, self.temporal, *self.terms.values()) > 0

    @property
    def temporal_covariance(self) -> float:
        """Weight of the covariance over time: as covariance to variance; VICReg's where variance is 0."""
        return self.temporal * (self.covariance / self.variance if self.variance else VICREG)


class Regulariser(nn.Module):
    """The weighted terms of a config, in fp32. Each rank looks at its own clips, or at all with `over_ranks`."""

    def __init__(self, config: RegulariserConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.expander = Expander(width, config.expander) if config.expander else nn.Identity()

    def forward(
        self, features: Tensor, index: Tensor, tokens: int, draw: int,
        *, weights: Tensor | None = None, grid: Grid | None = None,
    ) -> Tensor:  # fmt: skip
        """Terms of features [B, K, D] at positions index [B, K] of `tokens` -> scalar; `draw` chooses the slices.

        weights [B, K], of any scale: how much a token counts (`motion_weights`). grid: what `temporal` tells times by.
        """
        config = self.config
        if not config.active:
            return features.new_zeros((), dtype=torch.float32)
        if config.over == "pooled":
            return self.judge(self.expander(features.mean(1)), draw)
        if config.motion and weights is None:
            raise ValueError("regulariser.motion needs the weights of the tokens, which this objective does not give")
        with torch.autocast(features.device.type, enabled=False):
            everywhere = config.over_ranks
            rows = self.expander(features.float())
            centred, freedom, seen = centre_groups(rows, index, tokens, everywhere)
            weight = None if weights is None else even_out(weights.float().flatten(), everywhere)
            total = self._vicreg(_scale(centred, weight), freedom) + self._own(_scale(centred, weight), freedom)
            if config.temporal:
                total = total + self._temporal(centred, freedom, weight, index, grid)
            if config.sigreg:
                total = total + config.sigreg * self._sigreg(centred, seen, weight, draw)
            return total

    def judge(self, rows: Tensor, draw: int) -> Tensor:
        """Terms of rows [n, E], centred here -> scalar."""
        config = self.config
        with torch.autocast(rows.device.type, enabled=False):
            rows = rows.float()
            count = sum_over_ranks(rows.new_tensor(float(len(rows))), config.over_ranks)
            centred = rows - sum_over_ranks(rows.sum(0), config.over_ranks) / count
            total = self._vicreg(centred, (count - 1).clamp(min=1)) + self._own(centred, (count - 1).clamp(min=1))
            if config.sigreg:
                sliced = centred @ draw_directions(rows.shape[1], config.slices, draw, rows.device)
                total = total + config.sigreg * gaussian_distance(sliced, config.knots, over_ranks=config.over_ranks)
            return total

    def _vicreg(self, centred: Tensor, freedom: Tensor) -> Tensor:
        config = self.config
        if not (config.variance or config.covariance):
            return centred.new_zeros(())
        variance, covariance = variance_covariance(centred, freedom, over_ranks=config.over_ranks)
        return config.variance * variance + config.covariance * covariance

    def _own(self, centred: Tensor, freedom: Tensor) -> Tensor:
        """Registered terms: functions of centred rows [n, E] and their degrees of freedom -> scalar."""
        total = centred.new_zeros(())
        for name, weight in self.config.terms.items():
            total = total + weight * REGULARISERS.find(name)(centred, freedom)
        return total

    def _temporal(
        self, centred: Tensor, freedom: Tensor, weight: Tensor | None, index: Tensor, grid: Grid | None
    ) -> Tensor:
        """The same terms of what is left of centred [B*K, D] without the mean over time of each clip and place."""
        if grid is None:
            raise ValueError("regulariser.temporal needs the grid of the tokens, which this objective does not give")
        config, (_, h, w) = self.config, grid
        line = index % (h * w) + torch.arange(len(index), device=index.device).unsqueeze(1) * h * w  # clip and place
        rows = centred.unflatten(0, index.shape)
        moved, left, _ = centre_groups(rows, line, len(index) * h * w)  # a clip is on one rank
        left, count = sum_over_ranks(torch.stack([left, left.new_tensor(float(index.numel()))]), config.over_ranks)
        freedom = freedom * left / count  # both means are taken out: (B - 1) (T - 1) h w of full clips
        scaled = _scale(moved, weight)
        variance, covariance = variance_covariance(scaled, freedom, config.temporal_margin, config.over_ranks)
        return config.temporal * variance + config.temporal_covariance * covariance

    def _sigreg(self, centred: Tensor, seen: Tensor, weight: Tensor | None, draw: int) -> Tensor:
        """SIGReg of rows [n, E] whose positions were seen [n] times each.

        What c rows keep of a variance of 1 once their mean is taken out is 1 - 1/c, a test for a Gaussian of
        variance 1 would hold that against them; of a position seen once nothing is left to judge.
        """
        rows = centred * (seen / (seen - 1).clamp(min=1)).sqrt().unsqueeze(1)
        judged = (seen > 1).float()
        weight = judged if weight is None else judged * weight
        directions = draw_directions(rows.shape[1], self.config.slices, draw, rows.device)
        return gaussian_distance(rows @ directions, self.config.knots, weight, self.config.over_ranks)


class Expander(nn.Sequential):
    """Three layers with LayerNorm between them (VICReg's has batch statistics): [.., D] -> [.., E]."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__(
            nn.Linear(width, out), nn.LayerNorm(out), nn.GELU(), nn.Linear(out, out), nn.LayerNorm(out), nn.GELU(),
            nn.Linear(out, out),
        )  # fmt: skip


def centre_per_position(features: Tensor, index: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    """Take from features [B, K, D] at positions index [B, K] the mean of their position over the batch.

    What is left cannot be explained by where a token sits. Returns the centred features [B*K, D] and the degrees of
    freedom left, B*K less the number of positions seen (scalar).
    """
    centred, freedom, _ = centre_groups(features, index, tokens)
    return centred, freedom.clamp(min=1)


def centre_groups(
    features: Tensor, index: Tensor, groups: int, over_ranks: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Take from features [B, K, D] in the groups index [B, K] the mean of their group.

    Returns the centred features [B*K, D], the degrees of freedom left (scalar, maybe 0), and how many rows the group of
    each row has [B*K].
    """
    flat, place = features.float().flatten(0, 1), index.flatten()
    count = torch.zeros(groups, device=flat.device).index_add_(0, place, torch.ones_like(place, dtype=flat.dtype))
    total = torch.zeros(groups, flat.shape[1], device=flat.device).index_add(0, place, flat)
    count, total = sum_over_ranks(count, over_ranks), sum_over_ranks(total, over_ranks)
    mean = total / count.clamp(min=1).unsqueeze(1)
    return flat - mean[place], count.sum() - (count > 0).sum(), count[place]


def variance_covariance(
    centred: Tensor, freedom: Tensor | int, margin: float = 1.0, over_ranks: bool = False
) -> tuple[Tensor, Tensor]:
    """VICReg's terms of centred features [n, D] with `freedom` degrees of freedom (Bardes et al. 2022).

    Variance: mean over channels of relu(margin - standard deviation). Covariance: sum of the squared off-diagonal
    elements of the covariance matrix, over D.
    """
    freedom = torch.as_tensor(freedom, device=centred.device).clamp(min=1)
    covariance = sum_over_ranks(centred.T @ centred, over_ranks) / freedom
    variance = covariance.diagonal()
    hinge = torch.relu(margin - (variance + 1e-4).sqrt()).mean()
    off_diagonal = covariance.square().sum() - variance.square().sum()
    return hinge, off_diagonal / centred.shape[1]


def draw_directions(width: int, slices: int, draw: int, device: torch.device) -> Tensor:
    """Random unit vectors [width, slices], a function of `draw` alone: ranks share them, a resumed run repeats them."""
    generator = torch.Generator().manual_seed(draw)
    directions = torch.randn(width, slices, generator=generator)
    unit: Tensor = directions / directions.norm(dim=0)
    return unit.to(device, non_blocking=True)


def gaussian_distance(sliced: Tensor, knots: int, weight: Tensor | None = None, over_ranks: bool = False) -> Tensor:
    """How far the columns of sliced [n, S] are from a standard Gaussian -> scalar, about 1 for one, larger otherwise.

    Epps and Pulley's test (1983) as SIGReg uses it (LeJEPA, arXiv 2511.08544): n times the squared distance of the
    empirical characteristic function from exp(-t^2 / 2), weighted by the same Gaussian, over t in [-3, 3]; the mean
    over slices. The integral is even in t: J knots on [0, 3], trapezoid rule. With weights [n] the characteristic
    function is the weighted mean, and n the number of equal rows that would be as sure of it.
    """
    knot = torch.linspace(0, 3, knots, device=sliced.device)
    step = 3 / (knots - 1)
    trapezoid = torch.full_like(knot, 2 * step)
    trapezoid[:1] = trapezoid[-1:] = step
    wanted = (-knot.square() / 2).exp()
    weight = sliced.new_ones(len(sliced)) if weight is None else weight
    sums = sum_over_ranks(torch.stack([weight.sum(), weight.square().sum()]), over_ranks)
    total, squares = sums.clamp(min=1e-12)
    angle = sliced.unsqueeze(-1) * knot  # [n, S, J]
    waves = torch.stack([angle.cos(), angle.sin()])
    real, imaginary = sum_over_ranks(torch.einsum("n,pnsj->psj", weight, waves), over_ranks) / total
    error = (real - wanted).square() + imaginary.square()
    distance: Tensor = (error * wanted * trapezoid).sum(-1).mean() * total.square() / squares
    return distance


@torch.no_grad()
def motion_weights(video: Tensor, tubelet: int, patch: int) -> Tensor:
    """How much each token of video [B, C, T, H, W] (normalised pixels) counts by its motion -> [B, N].

    STILL, and 1 more where the mean absolute difference of its frames to those before them is above MOVING. The first
    frame is compared with the second.
    """
    change = video.diff(dim=2).abs()
    change = torch.cat([change[:, :, :1], change], 2) if change.shape[2] else torch.zeros_like(video)
    mean: Tensor = functional.avg_pool3d(change.float(), (tubelet, patch, patch)).mean(1)
    moves: Tensor = (mean > MOVING).flatten(1)
    return moves.float() + STILL


def even_out(weights: Tensor, over_ranks: bool = False) -> Tensor:
    """Weights [n] divided by their mean, over all ranks if asked."""
    total, count = sum_over_ranks(torch.stack([weights.sum(), weights.new_tensor(float(len(weights)))]), over_ranks)
    evened: Tensor = weights * count / total.clamp(min=1e-12)
    return evened


def _scale(rows: Tensor, weight: Tensor | None) -> Tensor:
    """Rows [n, D] whose products carry the weights [n]."""
    return rows if weight is None else rows * weight.sqrt().unsqueeze(1)
