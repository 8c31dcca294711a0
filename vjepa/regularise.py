"""Regularisers that prevent collapse without negatives: VICReg's terms and SIGReg.

B clips, K context tokens, N tokens of the grid, D width, E expander width, n rows, S slices, J knots.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from vjepa.balance import Balance
from vjepa.positions import Grid
from vjepa.ranks import sum_over_ranks
from vjepa.registry import REGULARISERS

VICREG = 1 / 25  # ratio of covariance weight to variance weight in VICReg
MOVING, STILL = 0.02, 0.02  # frame difference above which a token moves; weight of one that does not


@dataclass(frozen=True)
class RegulariserConfig:
    """Weights of the terms (0: off, as in the V-JEPA papers) and what they are computed on."""

    variance: float = 0.0  # VICReg: keep every channel's standard deviation at 1 or more
    covariance: float = 0.0  # VICReg: decorrelate the channels
    sigreg: float = 0.0  # LeJEPA: make every direction Gaussian
    terms: dict[str, float] = field(default_factory=dict)  # weights of your own registered terms
    temporal: float = 0.0  # keep every channel's standard deviation over time
    temporal_covariance: float | None = (
        None  # decorrelate the channels over time; null: temporal * covariance / variance
    )
    temporal_margin: float = 0.5  # the standard deviation required over time
    over: Literal["tokens", "pooled"] = (
        "tokens"  # tokens: minus the batch mean at their token index; pooled: the mean token of each clip
    )
    balance: bool = False  # let a factor of all terms follow the variance term: up while features shrink, else down
    motion: bool = False  # moving tokens weigh 51 times as much as static ones
    over_ranks: bool = False  # compute statistics over the clips of all ranks, not of each rank alone
    expander: int = 0  # width of a three-layer projection before the terms; 0: none
    slices: int = 256  # random directions per step (SIGReg)
    knots: int = 17  # points at which the characteristic function is evaluated (SIGReg)

    def __post_init__(self) -> None:
        if min(self.variance, self.covariance, self.sigreg, self.temporal, self.expander) < 0:
            raise ValueError(
                f"regulariser.variance, covariance, sigreg, temporal and expander must be at least 0, got "
                f"{self.variance}, {self.covariance}, {self.sigreg}, {self.temporal} and {self.expander}"
            )
        if self.temporal_covariance is not None and (self.temporal_covariance < 0 or not self.temporal):
            raise ValueError(
                "regulariser.temporal_covariance must be at least 0, and needs regulariser.temporal above 0, got "
                f"{self.temporal_covariance:g} with temporal={self.temporal:g}"
            )
        for name, weight in self.terms.items():
            REGULARISERS.find(name)
            if weight < 0:
                raise ValueError(f"regulariser.terms.{name} must be at least 0, got {weight}")
        if self.terms and self.over_ranks:
            raise ValueError("regulariser.terms look at a device's own clips: set regulariser.over_ranks=false")
        if self.expander and not self.active:
            raise ValueError(
                "regulariser.expander has no effect without a term: set variance, covariance or sigreg above 0"
            )
        if self.balance and not self.variance:
            raise ValueError("regulariser.balance follows the variance term: set regulariser.variance above 0")
        if self.slices < 1 or self.knots < 2:
            raise ValueError(f"regulariser needs slices >= 1 and knots >= 2, got {self.slices} and {self.knots}")
        if self.temporal_margin <= 0:
            raise ValueError(f"regulariser.temporal_margin must be above 0, got {self.temporal_margin}")
        if self.over == "pooled" and (self.temporal or self.motion):
            raise ValueError(
                "regulariser.temporal and regulariser.motion work on single tokens: they need regulariser.over=tokens"
            )

    @property
    def active(self) -> bool:
        """Is any term on?"""
        return max(self.variance, self.covariance, self.sigreg, self.temporal, *self.terms.values()) > 0

    @property
    def over_time(self) -> float:
        """Weight of the temporal covariance, by default in the ratio of the others (VICReg's if variance is 0)."""
        if self.temporal_covariance is not None:
            return self.temporal_covariance
        return self.temporal * (self.covariance / self.variance if self.variance else VICREG)


class Regulariser(nn.Module):
    """The weighted sum of a config's terms, in fp32, over each rank's own clips or, with `over_ranks`, over all."""

    def __init__(self, config: RegulariserConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.expander = Expander(width, config.expander) if config.expander else nn.Identity()
        self.balance = Balance() if config.balance else None

    def forward(
        self, features: Tensor, index: Tensor, tokens: int, draw: int,
        *, weights: Tensor | None = None, grid: Grid | None = None,
    ) -> Tensor:  # fmt: skip
        """Terms of features [B, K, D] at token indices index [B, K] out of `tokens`, times `balance`'s factor.

        Returns a scalar. `draw` seeds the slices.
        weights [B, K]: token weights of any scale (`motion_weights`). grid: the token grid, needed by `temporal`.
        """
        return self._balanced(self._token_terms(features, index, tokens, draw, weights, grid))

    def _token_terms(
        self, features: Tensor, index: Tensor, tokens: int, draw: int, weights: Tensor | None, grid: Grid | None
    ) -> Tensor:
        config = self.config
        if not config.active:
            return features.new_zeros((), dtype=torch.float32)
        if config.over == "pooled":
            return self._row_terms(self.expander(features.mean(1)), draw)
        if config.motion and weights is None:
            raise ValueError(
                "regulariser.motion needs token weights, which this objective does not provide; set it to false"
            )
        with torch.autocast(features.device.type, enabled=False):
            rows = self.expander(features.float())
            centred, freedom, seen = centre_groups(rows, index, tokens, config.over_ranks)
            weight = None if weights is None else even_out(weights.float().flatten(), config.over_ranks)
            total = self._vicreg(_scale(centred, weight), freedom) + self._own(_scale(centred, weight), freedom)
            if config.temporal:
                total = total + self._temporal(centred, freedom, weight, index, grid)
            if config.sigreg:
                total = total + config.sigreg * self._sigreg(centred, seen, weight, draw)
            return total

    def score_rows(self, rows: Tensor, draw: int) -> Tensor:
        """Terms of rows [n, E], which are centred first, times the factor that `balance` finds -> scalar."""
        return self._balanced(self._row_terms(rows, draw))

    def _balanced(self, total: Tensor) -> Tensor:
        return total if self.balance is None else self.balance.factor * total

    def _row_terms(self, rows: Tensor, draw: int) -> Tensor:
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
        if self.balance is not None and self.training:
            self.balance.follow(variance)
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
        """VICReg's terms of centred [B*K, D] after removing the mean over time of each clip and spatial cell."""
        if grid is None:
            raise ValueError(
                "regulariser.temporal needs the token grid, which this objective does not provide; set it to 0"
            )
        config, (_, h, w) = self.config, grid
        line = index % (h * w) + torch.arange(len(index), device=index.device).unsqueeze(1) * h * w  # clip and cell
        rows = centred.unflatten(0, index.shape)
        moved, left, _ = centre_groups(rows, line, len(index) * h * w)  # each clip is on one rank
        left, count = sum_over_ranks(torch.stack([left, left.new_tensor(float(index.numel()))]), config.over_ranks)
        freedom = freedom * left / count  # both means are removed: (B - 1) (T - 1) h w for full clips
        scaled = _scale(moved, weight)
        variance, covariance = variance_covariance(scaled, freedom, config.temporal_margin, config.over_ranks)
        return config.temporal * variance + config.over_time * covariance

    def _sigreg(self, centred: Tensor, seen: Tensor, weight: Tensor | None, draw: int) -> Tensor:
        """SIGReg of centred rows [n, E]; seen [n]: how many rows share each row's token index.

        Subtracting the mean of c rows shrinks their variance by 1 - 1/c, which the test for variance 1 would penalise,
        so rows are rescaled. A row whose token index occurs once is zero after centring and is left out.
        """
        rows = centred * (seen / (seen - 1).clamp(min=1)).sqrt().unsqueeze(1)
        usable = (seen > 1).float()
        weight = usable if weight is None else usable * weight
        directions = draw_directions(rows.shape[1], self.config.slices, draw, rows.device)
        return gaussian_distance(rows @ directions, self.config.knots, weight, self.config.over_ranks)


class Expander(nn.Sequential):
    """Three-layer MLP with LayerNorm (VICReg's has BatchNorm): [.., D] -> [.., E]."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__(
            nn.Linear(width, out), nn.LayerNorm(out), nn.GELU(), nn.Linear(out, out), nn.LayerNorm(out), nn.GELU(),
            nn.Linear(out, out),
        )  # fmt: skip


def centre_per_position(features: Tensor, index: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    """Subtract from features [B, K, D] at token indices index [B, K] the batch mean at each token index.

    What remains cannot be explained by a token's position. Returns the centred features [B*K, D] and the remaining
    degrees of freedom: B*K minus the number of distinct token indices (scalar).
    """
    centred, freedom, _ = centre_groups(features, index, tokens)
    return centred, freedom.clamp(min=1)


def centre_groups(
    features: Tensor, index: Tensor, groups: int, over_ranks: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Subtract the group mean from features [B, K, D], whose groups are index [B, K].

    Returns the centred features [B*K, D], the remaining degrees of freedom (scalar, may be 0), and the size of each
    row's group [B*K].
    """
    flat, group = features.float().flatten(0, 1), index.flatten()
    count = torch.zeros(groups, device=flat.device).index_add_(0, group, torch.ones_like(group, dtype=flat.dtype))
    total = torch.zeros(groups, flat.shape[1], device=flat.device).index_add(0, group, flat)
    count, total = sum_over_ranks(count, over_ranks), sum_over_ranks(total, over_ranks)
    mean = total / count.clamp(min=1).unsqueeze(1)
    return flat - mean[group], count.sum() - (count > 0).sum(), count[group]


def variance_covariance(
    centred: Tensor, freedom: Tensor | int, margin: float = 1.0, over_ranks: bool = False
) -> tuple[Tensor, Tensor]:
    """VICReg's terms of centred features [n, D] with `freedom` degrees of freedom (Bardes et al. 2022).

    Variance: mean over channels of relu(margin - standard deviation). Covariance: sum of squared off-diagonal entries
    of the covariance matrix, divided by D.
    """
    freedom = torch.as_tensor(freedom, device=centred.device).clamp(min=1)
    covariance = sum_over_ranks(centred.T @ centred, over_ranks) / freedom
    variance = covariance.diagonal()
    hinge = torch.relu(margin - (variance + 1e-4).sqrt()).mean()
    off_diagonal = covariance.square().sum() - variance.square().sum()
    return hinge, off_diagonal / centred.shape[1]


def draw_directions(width: int, slices: int, draw: int, device: torch.device) -> Tensor:
    """Random unit vectors [width, slices], seeded by `draw` alone: equal on all ranks and after a resume."""
    generator = torch.Generator().manual_seed(draw)
    directions = torch.randn(width, slices, generator=generator)
    unit: Tensor = directions / directions.norm(dim=0)
    return unit.to(device, non_blocking=True)


def gaussian_distance(sliced: Tensor, knots: int, weight: Tensor | None = None, over_ranks: bool = False) -> Tensor:
    """Distance of the columns of sliced [n, S] from a standard Gaussian -> scalar: about 1 for a Gaussian, else larger.

    The Epps-Pulley test (1983) as used by SIGReg (LeJEPA, arXiv 2511.08544): n times the squared distance of the
    empirical characteristic function from exp(-t^2 / 2), weighted by the same Gaussian, over t in [-3, 3]; the mean
    over slices. The integrand is even in t, so J knots on [0, 3] with the trapezoid rule suffice. With weights [n] the
    characteristic function is a weighted mean, and n becomes the effective sample size.
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
    """Weight of each token of video [B, C, T, H, W] (normalised pixels) by its motion -> [B, N].

    STILL, plus 1 if the mean absolute difference between consecutive frames is above MOVING. The first frame is
    compared with the second.
    """
    change = video.diff(dim=2).abs()
    change = torch.cat([change[:, :, :1], change], 2) if change.shape[2] else torch.zeros_like(video)
    mean: Tensor = functional.avg_pool3d(change.float(), (tubelet, patch, patch)).mean(1)
    moves: Tensor = (mean > MOVING).flatten(1)
    return moves.float() + STILL


def even_out(weights: Tensor, over_ranks: bool = False) -> Tensor:
    """Weights [n] divided by their mean (over all ranks with `over_ranks`)."""
    total, count = sum_over_ranks(torch.stack([weights.sum(), weights.new_tensor(float(len(weights)))]), over_ranks)
    evened: Tensor = weights * count / total.clamp(min=1e-12)
    return evened


def _scale(rows: Tensor, weight: Tensor | None) -> Tensor:
    """Rows [n, D] scaled so that their products have the weights [n]."""
    return rows if weight is None else rows * weight.sqrt().unsqueeze(1)
