"""What keeps the representation from collapsing without negatives: VICReg's terms and SIGReg.

B clips, K context tokens, N tokens of the grid, D width, E width after the expander, n rows, S slices, J knots.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class RegulariserConfig:
    """Weights of the terms (0: off, as V-JEPA is published) and what they look at."""

    variance: float = 0.0  # VICReg: every channel keeps a deviation of 1
    covariance: float = 0.0  # VICReg: channels say different things
    sigreg: float = 0.0  # LeJEPA: every direction is distributed like a Gaussian
    over: Literal["tokens", "pooled"] = (
        "tokens"  # tokens: less the mean of their position over the batch; pooled: the mean token of a clip
    )
    expander: int = 0  # width of a three-layer projection in front of the terms; 0: none
    slices: int = 256  # random directions a step (SIGReg)
    knots: int = 17  # points at which the characteristic function is read (SIGReg)

    def __post_init__(self) -> None:
        if min(self.variance, self.covariance, self.sigreg, self.expander) < 0:
            raise ValueError(
                f"regulariser.variance, covariance, sigreg and expander must be at least 0, got {self.variance}, "
                f"{self.covariance}, {self.sigreg} and {self.expander}"
            )
        if self.expander and not self.active:
            raise ValueError("regulariser.expander needs a term behind it: set variance, covariance or sigreg above 0")
        if self.slices < 1 or self.knots < 2:
            raise ValueError(f"regulariser needs slices >= 1 and knots >= 2, got {self.slices} and {self.knots}")

    @property
    def active(self) -> bool:
        """Is any term on?"""
        return max(self.variance, self.covariance, self.sigreg) > 0


class Regulariser(nn.Module):
    """The weighted terms of a config; computed in fp32. Under DDP each rank looks at its own batch."""

    def __init__(self, config: RegulariserConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.expander = Expander(width, config.expander) if config.expander else nn.Identity()

    def forward(self, features: Tensor, index: Tensor, tokens: int, draw: int) -> Tensor:
        """Terms of features [B, K, D] at positions index [B, K] of `tokens` -> scalar; `draw` chooses the slices."""
        if not self.config.active:
            return features.new_zeros((), dtype=torch.float32)
        if self.config.over == "pooled":
            return self.judge(self.expander(features.mean(1)), draw)
        with torch.autocast(features.device.type, enabled=False):
            rows, freedom = centre_per_position(self.expander(features.float()), index, tokens)
            return self._terms(rows, freedom, draw)

    def judge(self, rows: Tensor, draw: int) -> Tensor:
        """Terms of rows [n, E], centred here -> scalar."""
        with torch.autocast(rows.device.type, enabled=False):
            rows = rows.float()
            return self._terms(rows - rows.mean(0), max(1, len(rows) - 1), draw)

    def _terms(self, centred: Tensor, freedom: Tensor | int, draw: int) -> Tensor:
        config, total = self.config, centred.new_zeros(())
        if config.variance or config.covariance:
            variance, covariance = variance_covariance(centred, freedom)
            total = total + config.variance * variance + config.covariance * covariance
        if config.sigreg:
            directions = draw_directions(centred.shape[1], config.slices, draw, centred.device)
            total = total + config.sigreg * gaussian_distance(centred @ directions, config.knots)
        return total


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
    flat, place = features.float().flatten(0, 1), index.flatten()
    count = torch.zeros(tokens, device=flat.device).index_add_(0, place, torch.ones_like(place, dtype=flat.dtype))
    total = torch.zeros(tokens, flat.shape[1], device=flat.device).index_add(0, place, flat)
    mean = total / count.clamp(min=1).unsqueeze(1)
    return flat - mean[place], (len(place) - (count > 0).sum()).clamp(min=1)


def variance_covariance(centred: Tensor, freedom: Tensor | int) -> tuple[Tensor, Tensor]:
    """VICReg's terms of centred features [n, D] with `freedom` degrees of freedom (Bardes et al. 2022).

    Variance: mean over channels of relu(1 - standard deviation). Covariance: sum of the squared off-diagonal elements
    of the covariance matrix, over D.
    """
    covariance = centred.T @ centred / freedom
    variance = covariance.diagonal()
    hinge = torch.relu(1 - (variance + 1e-4).sqrt()).mean()
    off_diagonal = covariance.square().sum() - variance.square().sum()
    return hinge, off_diagonal / centred.shape[1]


def draw_directions(width: int, slices: int, draw: int, device: torch.device) -> Tensor:
    """Random unit vectors [width, slices], a function of `draw` alone: ranks share them, a resumed run repeats them."""
    generator = torch.Generator().manual_seed(draw)
    directions = torch.randn(width, slices, generator=generator)
    unit: Tensor = directions / directions.norm(dim=0)
    return unit.to(device, non_blocking=True)


def gaussian_distance(sliced: Tensor, knots: int) -> Tensor:
    """How far the columns of sliced [n, S] are from a standard Gaussian -> scalar, about 1 for one, larger otherwise.

    Epps and Pulley's test (1983) as SIGReg uses it (LeJEPA, arXiv 2511.08544): n times the squared distance of the
    empirical characteristic function from exp(-t^2 / 2), weighted by the same Gaussian, over t in [-3, 3]; the mean
    over slices. The integral is even in t: J knots on [0, 3], trapezoid rule.
    """
    knot = torch.linspace(0, 3, knots, device=sliced.device)
    step = 3 / (knots - 1)
    trapezoid = torch.full_like(knot, 2 * step)
    trapezoid[:1] = trapezoid[-1:] = step
    wanted = (-knot.square() / 2).exp()
    angle = sliced.unsqueeze(-1) * knot  # [n, S, J]
    error = (angle.cos().mean(0) - wanted).square() + angle.sin().mean(0).square()
    distance: Tensor = (error * wanted * trapezoid).sum(-1).mean()
    return len(sliced) * distance
