"""Gauges of collapse: the loss under a moving teacher says little, these say whether features still differ.

A collapsed encoder writes the same vector for every clip; a partly collapsed one writes where a token sits and little
of what is there. So the gauges look across clips at a fixed position. B clips, N tokens, D width.
"""

import torch
from torch import Tensor


@torch.no_grad()
def collapse_gauges(features: Tensor) -> dict[str, float]:
    """Gauges of the target encoder's output [B, N, D]: 0 (or rank 1) is collapse. NaN for a batch of one clip.

    spread: standard deviation across clips at a fixed position, over that across all tokens (0 to about 1).
    rank: effective number of directions of the tokens, centred per position (1 to D).
    pooled_rank: the same for the mean token of a clip, centred over the batch (1 to min(B - 1, D)).
    """
    features = features.float()
    if len(features) < 2:
        return dict.fromkeys(("spread", "rank", "pooled_rank"), float("nan"))
    centred = features - features.mean(0)
    across_clips = centred.square().sum(0).div(len(features) - 1).mean()
    overall = features.flatten(0, 1).var(0).mean()
    pooled = features.mean(1)
    return {
        "spread": float((across_clips / overall.clamp(min=1e-12)).sqrt()),
        "rank": effective_rank(centred.flatten(0, 1)),
        "pooled_rank": effective_rank(pooled - pooled.mean(0)),
    }


@torch.no_grad()
def effective_rank(centred: Tensor) -> float:
    """exp of the entropy of the covariance spectrum of centred features [n, D] (Roy and Vetterli 2007), 1 to D."""
    gram = centred.T @ centred if centred.shape[0] > centred.shape[1] else centred @ centred.T
    spectrum = torch.linalg.eigvalsh(gram.double()).clamp(min=0)
    share = spectrum / spectrum.sum().clamp(min=1e-30)
    entropy = -(share * share.clamp(min=1e-30).log()).sum()
    return float(entropy.exp())
