"""What pulls prediction and target together, and what keeps the representation from collapsing.

B clips, K context tokens, M target tokens, N tokens of the grid, D width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vjepa.vit import gather_tokens


@dataclass(frozen=True)
class LossConfig:
    """Prediction in latent space, and optional VICReg terms on the context encoder's output."""

    power: float = 1.0  # p of mean |z - h|^p / p
    variance: float = 0.0  # weight of the variance term; 0: off, as published
    covariance: float = 0.0  # weight of the covariance term; 0: off, as published

    def __post_init__(self) -> None:
        if self.power < 1:
            raise ValueError(f"loss.power must be at least 1, got {self.power}")
        if min(self.variance, self.covariance) < 0:
            raise ValueError(f"loss.variance and loss.covariance must be at least 0, got {self}")


def prediction_loss(prediction: Tensor, target: Tensor, power: float) -> Tensor:
    """mean |z - h|^p / p of prediction and target [B, M, D] (V-JEPA 1, equation 1, p = 1) -> scalar."""
    distance = (prediction.float() - target.float()).abs()
    return (distance if power == 1 else distance.pow(power)).mean() / power


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


def regulariser(config: LossConfig, context: Tensor, index: Tensor, tokens: int) -> Tensor:
    """Weighted variance and covariance terms of context features [B, K, D] at positions index [B, K] -> scalar."""
    if config.variance == 0 and config.covariance == 0:
        return context.new_zeros(())
    with torch.autocast(context.device.type, enabled=False):
        variance, covariance = variance_covariance(*centre_per_position(context, index, tokens))
    return config.variance * variance + config.covariance * covariance


def masked_prediction_loss(prediction: Tensor, target: Tensor, index: Tensor, power: float) -> Tensor:
    """Prediction [B, M, D] of the tokens `index` [B, M] against the target encoder's output [B, N, D] -> scalar."""
    return prediction_loss(prediction, gather_tokens(target, index), power)
