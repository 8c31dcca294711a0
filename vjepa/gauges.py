"""Collapse metrics: with a moving teacher the loss says little, these show whether features still differ.

A collapsed encoder outputs the same vector for every clip; a partly collapsed one encodes a token's position and little
of the content. So the metrics compare clips at the same token index.
B clips, K observed tokens per clip, M predicted tokens, N tokens of the grid, D width.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from vjepa.objectives.objective import MaskPrediction, StepOutput
from vjepa.regularise import centre_per_position

NAMES = ("spread", "rank", "rankme", "cosine", "pooled_rank")


@dataclass
class Measured:
    """What gauges are computed from: small tensors, made where the features are.

    `finish` has the slow part, the spectra, and needs nothing but these tensors, so it can run elsewhere, later.
    """

    numbers: dict[str, Tensor | float] = field(default_factory=dict)  # finished, by name
    products: dict[tuple[str, ...], Tensor] = field(
        default_factory=dict
    )  # matrices [n, n], by the names of their gauges

    def to_host(self) -> "Measured":
        """A copy in the host's memory."""
        numbers: dict[str, Tensor | float] = {name: float(value) for name, value in self.numbers.items()}
        return Measured(numbers, {names: product.cpu() for names, product in self.products.items()})

    def finish(self) -> dict[str, float]:
        """The gauges by name. `products` with one name give an effective rank, with two also RankMe."""
        found = {name: float(value) for name, value in self.numbers.items()}
        for names, product in self.products.items():
            spectrum = energies_of(product)
            found |= dict(zip(names, (count_directions(spectrum), count_directions(spectrum.sqrt())), strict=False))
        return found


def collapse_gauges(features: Tensor, index: Tensor | None = None, tokens: int = 0) -> dict[str, float]:
    """Collapse metrics of features [B, K, D] at the token indices index [B, K] out of `tokens` (None: all), by name.

    NaN for a batch of one clip and for non-finite features. Total collapse means 0 for spread, 1 for all others.
    spread: standard deviation across clips at a fixed token index, divided by that of all tokens (0 to about 1).
    rank: effective rank of the tokens after subtracting the mean at their token index (1 to D).
    rankme: the same from singular values instead of their squares, as in the RankMe paper; a milder measure.
    cosine: mean cosine between tokens of different clips at the same token index (about 0 to 1).
    pooled_rank: effective rank of the mean token of each clip, minus the batch mean (1 to min(B - 1, D)).
    """
    return measure_collapse(features, index, tokens).finish()


@torch.no_grad()
def measure_collapse(
    features: Tensor, index: Tensor | None = None, tokens: int = 0, prefix: str = "", pooled: bool = True
) -> Measured:
    """What `collapse_gauges` computes its numbers from; `prefix` begins their names."""
    features = features.float()
    names = [name for name in NAMES if pooled or name != "pooled_rank"]
    if len(features) < 2 or not features.isfinite().all():
        return Measured({prefix + name: math.nan for name in names})
    if index is None:
        tokens = features.shape[1]
        index = torch.arange(tokens, device=features.device).expand(len(features), -1)
    centred, freedom = centre_per_position(features, index, tokens)
    across_clips = centred.square().sum(0).div(freedom).mean()
    overall = features.flatten(0, 1).var(0).mean()
    found = Measured()
    found.numbers[prefix + "spread"] = (across_clips / overall.clamp(min=1e-12)).sqrt()
    found.numbers[prefix + "cosine"] = cosine_across_clips(features, index, tokens)
    found.products[prefix + "rank", prefix + "rankme"] = small_product(centred)
    if pooled:
        means = features.mean(1)
        found.products[(prefix + "pooled_rank",)] = small_product(means - means.mean(0))
    return found


def step_gauges(output: StepOutput, features: Tensor) -> dict[str, float]:
    """Health metrics of a step; `features` [B, N, D] are those of whole clips, normally the targets.

    The context's metrics (without pooled rank) are those of the mask with the longest context.
    """
    return measure_step(output, features).finish()


@torch.no_grad()
def measure_step(output: StepOutput, features: Tensor) -> Measured:
    """What `step_gauges` computes its numbers from."""
    found = measure_collapse(features, prefix="gauges/")
    tokens = math.prod(output.grid)
    if output.predictions:
        widest = max(output.predictions, key=lambda one: one.context.shape[1])
        seen = measure_collapse(widest.context, widest.context_index, tokens, "gauges/context_", pooled=False)
        found = Measured(found.numbers | seen.numbers, found.products | seen.products)
    for one in output.predictions:
        found.numbers[f"lengths/{one.name}/context"] = one.context_index.shape[1] / tokens
        found.numbers[f"lengths/{one.name}/target"] = one.target_index.shape[1] / tokens
        if output.targets is not None:
            found.numbers[f"gauges/prediction_spread/{one.name}"] = prediction_spread(one, output.targets)
    return found


@torch.no_grad()
def prediction_spread(one: MaskPrediction, targets: Tensor) -> float:
    """Standard deviation of predictions across clips at a fixed token index, divided by that of the targets [B, N, D].

    0 for a predictor that outputs the same for every clip; 1 for one that varies as much as the targets.
    """
    if len(targets) < 2:
        return math.nan
    wanted = targets.gather(1, one.target_index.unsqueeze(-1).expand(-1, -1, targets.shape[-1]))
    predicted, _ = centre_per_position(one.prediction, one.target_index, targets.shape[1])
    target, _ = centre_per_position(wanted, one.target_index, targets.shape[1])
    return float((predicted.square().mean() / target.square().mean().clamp(min=1e-12)).sqrt())


@torch.no_grad()
def cosine_across_clips(features: Tensor, index: Tensor, tokens: int) -> float:
    """Mean cosine over all pairs of tokens from different clips at the same token index; NaN if there are none.

    features [B, K, D] at token indices index [B, K]. Per index, the sum over pairs is |sum of unit vectors|^2 - count.
    """
    unit = functional.normalize(features.float(), dim=-1).flatten(0, 1)
    group = index.flatten()
    count = torch.zeros(tokens, device=unit.device).index_add_(0, group, torch.ones_like(group, dtype=unit.dtype))
    total = torch.zeros(tokens, unit.shape[1], device=unit.device).index_add_(0, group, unit)
    pairs = (count * (count - 1)).sum()
    return float((total.square().sum() - count.sum()) / pairs) if pairs > 0 else math.nan


@torch.no_grad()
def effective_rank(centred: Tensor) -> float:
    """exp of the entropy of the covariance spectrum of centred features [n, D] (Roy and Vetterli 2007), 1 to D."""
    return count_directions(energies(centred))


def energies(centred: Tensor) -> Tensor:
    """Squared singular values of [n, D] -> [min(n, D)], ascending."""
    return energies_of(small_product(centred))


def small_product(centred: Tensor) -> Tensor:
    """The smaller of the two products of [n, D] with itself: [min(n, D), min(n, D)]."""
    return centred.T @ centred if centred.shape[0] > centred.shape[1] else centred @ centred.T


def energies_of(product: Tensor) -> Tensor:
    """Eigenvalues of a symmetric matrix without negative ones, ascending."""
    spectrum: Tensor = torch.linalg.eigvalsh(product.double())
    return spectrum.clamp(min=0)


def count_directions(weights: Tensor) -> float:
    """Effective number of directions with these weights: exp of the entropy of the normalised weights.

    For squared singular values this is the effective rank, for singular values RankMe (Garrido et al. 2023).
    """
    share = weights / weights.sum().clamp(min=1e-30)
    entropy = -(share * share.clamp(min=1e-30).log()).sum()
    return float(entropy.exp())


@torch.no_grad()
def uniformity(pooled: Tensor) -> float:
    """How uniformly pooled features [B, D] cover the sphere: log of the mean of exp(-2 d^2) over pairs.

    0 if all are equal; lower is better (Wang and Isola 2020). The batch mean is subtracted first.
    """
    pooled = pooled.float()
    directions = functional.normalize(pooled - pooled.mean(0), dim=1)
    return float(torch.pdist(directions).square().mul(-2).exp().mean().log())
