"""Losses between prediction and target.

B clips, K context tokens, M target tokens, D width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class LossConfig:
    """The distance between prediction and target."""

    power: float = 1.0  # p of mean |z - h|^p / p

    def __post_init__(self) -> None:
        if self.power < 1:
            raise ValueError(f"loss.power must be at least 1, got {self.power}")


def in_full_precision(x: Tensor) -> Tensor:
    """x in fp32; fp64 is kept."""
    return x if x.dtype == torch.float64 else x.float()


def prediction_loss(prediction: Tensor, target: Tensor, power: float, weight: Tensor | None = None) -> Tensor:
    """mean |z - h|^p / p of prediction and target [B, M, D] (V-JEPA 1, equation 1, p = 1) -> scalar.

    With `weight` [B, M], each token's distance is multiplied by its weight before the mean (V-JEPA 2.1).
    """
    distance = (in_full_precision(prediction) - in_full_precision(target)).abs()
    distance = distance if power == 1 else distance.pow(power)
    if weight is not None:
        distance = distance.mean(-1) * weight
    return distance.mean() / power


def contrastive_loss(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """InfoNCE of two views [B, E]: each must identify its partner in the batch (van den Oord et al. 2018) -> scalar.

    The contrastive baseline: the only loss here that needs negatives, and so a large batch.
    """
    first, second = functional.normalize(first.float(), dim=1), functional.normalize(second.float(), dim=1)
    similarity = first @ second.T / temperature
    partner = torch.arange(len(first), device=first.device)
    return (functional.cross_entropy(similarity, partner) + functional.cross_entropy(similarity.T, partner)) / 2
