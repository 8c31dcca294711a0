"""Collapse metrics: with a moving teacher the loss says little, these show whether features still differ.

A collapsed encoder outputs the same vector for every clip; a partly collapsed one encodes a token's position and little
of the content. So the metrics compare clips at the same token index.
B clips, K observed tokens per clip, M predicted tokens, N tokens of the grid, D width.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from vjepa.objectives.objective import MaskPrediction, StepOutput
from vjepa.regularise import centre_per_position

NAMES = ("spread", "rank", "rankme", "cosine", "pooled_rank")


@torch.no_grad()
def collapse_gauges(features: Tensor, index: Tensor | None = None, tokens: int = 0) -> dict[str, float]:
    """Collapse metrics of features [B, K, D] at the token indices index [B, K] out of `tokens` (None: all), by name.

    NaN for a batch of one clip and for non-finite features. Total collapse means 0 for spread, 1 for all others.
    spread: standard deviation across clips at a fixed token index, divided by that of all tokens (0 to about 1).
    rank: effective rank of the tokens after subtracting the mean at their token index (1 to D).
    rankme: the same from singular values instead of their squares, as in the RankMe paper; a milder measure.
    cosine: mean cosine between tokens of different clips at the same token index (about 0 to 1).
    pooled_rank: effective rank of the mean token of each clip, minus the batch mean (1 to min(B - 1, D)).
    """
    features = features.float()
    if len(features) < 2 or not features.isfinite().all():
        return dict.fromkeys(NAMES, math.nan)
    if index is None:
        tokens = features.shape[1]
        index = torch.arange(tokens, device=features.device).expand(len(features), -1)
    centred, freedom = centre_per_position(features, index, tokens)
    across_clips = centred.square().sum(0).div(freedom).mean()
    overall = features.flatten(0, 1).var(0).mean()
    spectrum = energies(centred)
    pooled = features.mean(1)
    return {
        "spread": float((across_clips / overall.clamp(min=1e-12)).sqrt()),
        "rank": count_directions(spectrum),
        "rankme": count_directions(spectrum.sqrt()),
        "cosine": cosine_across_clips(features, index, tokens),
        "pooled_rank": effective_rank(pooled - pooled.mean(0)),
    }


@torch.no_grad()
def step_gauges(output: StepOutput, features: Tensor) -> dict[str, float]:
    """Health metrics of a step; `features` [B, N, D] are those of whole clips, normally the targets.

    The context's metrics (without pooled rank) are those of the mask with the longest context.
    """
    found = {f"gauges/{name}": value for name, value in collapse_gauges(features).items()}
    tokens = math.prod(output.grid)
    if output.predictions:
        widest = max(output.predictions, key=lambda one: one.context.shape[1])
        seen = collapse_gauges(widest.context, widest.context_index, tokens)
        found |= {f"gauges/context_{name}": value for name, value in seen.items() if name != "pooled_rank"}
    for one in output.predictions:
        found[f"lengths/{one.name}/context"] = one.context_index.shape[1] / tokens
        found[f"lengths/{one.name}/target"] = one.target_index.shape[1] / tokens
        if output.targets is not None:
            found[f"gauges/prediction_spread/{one.name}"] = prediction_spread(one, output.targets)
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
    gram = centred.T @ centred if centred.shape[0] > centred.shape[1] else centred @ centred.T
    spectrum: Tensor = torch.linalg.eigvalsh(gram.double())
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
