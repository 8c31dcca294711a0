"""Gauges of collapse: the loss under a moving teacher says little, these say whether features still differ.

A collapsed encoder writes the same vector for every clip; a partly collapsed one writes where a token sits and little
of what is there. So the gauges look across clips at a fixed position.
B clips, K tokens of a clip that are looked at, M predicted ones, N tokens of the grid, D width.
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
    """Gauges of features [B, K, D] at the positions index [B, K] of `tokens` (None: all) -> name: value.

    NaN for a batch of one clip, and for features that are not finite. Collapse is 0 for the first, 1 for all others.
    spread: standard deviation across clips at a fixed position, over that across all tokens (0 to about 1).
    rank: effective number of directions of the tokens, each less the mean of its position (1 to D).
    rankme: the same from singular values instead of their squares: milder, the number of the RankMe paper.
    cosine: mean cosine between tokens of different clips at the same position (about 0 to 1).
    pooled_rank: rank for the mean token of a clip, less the mean of the batch (1 to min(B - 1, D)).
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
    """What a step says of its health; `features` [B, N, D] are those of whole clips, normally its targets.

    The context's gauges (without its pooled rank) are those of the kind of mask that shows most.
    """
    found = {f"gauges/{name}": value for name, value in collapse_gauges(features).items()}
    places = math.prod(output.grid)
    if output.predictions:
        widest = max(output.predictions, key=lambda one: one.context.shape[1])
        seen = collapse_gauges(widest.context, widest.context_index, places)
        found |= {f"gauges/context_{name}": value for name, value in seen.items() if name != "pooled_rank"}
    for one in output.predictions:
        found[f"lengths/{one.name}/context"] = one.context_index.shape[1] / places
        found[f"lengths/{one.name}/target"] = one.target_index.shape[1] / places
        if output.targets is not None:
            found[f"gauges/prediction_spread/{one.name}"] = prediction_spread(one, output.targets)
    return found


@torch.no_grad()
def prediction_spread(one: MaskPrediction, targets: Tensor) -> float:
    """Deviation of predictions across clips at a fixed position, over that of what they predict: targets [B, N, D].

    0 for a predictor that says the mean of the position, whatever the clip; 1 for one that varies as the targets do.
    """
    if len(targets) < 2:
        return math.nan
    wanted = targets.gather(1, one.target_index.unsqueeze(-1).expand(-1, -1, targets.shape[-1]))
    said, _ = centre_per_position(one.prediction, one.target_index, targets.shape[1])
    meant, _ = centre_per_position(wanted, one.target_index, targets.shape[1])
    return float((said.square().mean() / meant.square().mean().clamp(min=1e-12)).sqrt())


@torch.no_grad()
def cosine_across_clips(features: Tensor, index: Tensor, tokens: int) -> float:
    """Mean cosine of all pairs of tokens of different clips at the same position; NaN where no two clips share one.

    features [B, K, D] at positions index [B, K]: the pairs of a position are |sum of unit vectors|^2 less their number.
    """
    unit = functional.normalize(features.float(), dim=-1).flatten(0, 1)
    place = index.flatten()
    count = torch.zeros(tokens, device=unit.device).index_add_(0, place, torch.ones_like(place, dtype=unit.dtype))
    total = torch.zeros(tokens, unit.shape[1], device=unit.device).index_add_(0, place, unit)
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
    """How many directions share these weights: exp of the entropy of their shares.

    Of squared singular values the effective rank, of singular values RankMe (Garrido et al. 2023).
    """
    share = weights / weights.sum().clamp(min=1e-30)
    entropy = -(share * share.clamp(min=1e-30).log()).sum()
    return float(entropy.exp())


@torch.no_grad()
def uniformity(pooled: Tensor) -> float:
    """How evenly pooled features [B, D] cover the sphere: log of the mean of exp(-2 d^2) over pairs, 0 at a point.

    The lower the better (Wang and Isola 2020); the mean of the batch is taken out first.
    """
    pooled = pooled.float()
    directions = functional.normalize(pooled - pooled.mean(0), dim=1)
    return float(torch.pdist(directions).square().mul(-2).exp().mean().log())
