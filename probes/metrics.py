"""Accuracy over the whole set, with intervals. n samples, C classes."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Score:
    """What one probe scored on one set; fractions in [0, 1]."""

    samples: int
    classes: int
    top1: float
    low: float  # 95 % Wilson interval of top1
    high: float
    top5: float
    mean_class: float  # mean over classes of the accuracy inside the class
    confusion: list[list[int]]  # rows: true class, columns: predicted class

    def __str__(self) -> str:
        return f"{100 * self.top1:.1f} % ({100 * self.low:.1f} to {100 * self.high:.1f})"


def score(probabilities: Tensor, labels: Tensor) -> Score:
    """Score probabilities [n, C] against labels [n]; ValueError for an empty set or a label outside 0 ... C-1."""
    samples, classes = probabilities.shape
    if not samples:
        raise ValueError("cannot score an empty set: no sample of the evaluation set was readable")
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise ValueError(
            f"labels must lie in 0 ... {classes - 1}, got {int(labels.min())} ... {int(labels.max())}; "
            f"-1 stands for a video without a label"
        )
    predicted = probabilities.argmax(1)
    confusion = torch.zeros(classes, classes, dtype=torch.long)
    confusion.index_put_((labels, predicted), torch.ones_like(labels), accumulate=True)
    best = probabilities.topk(min(5, classes), dim=1).indices
    hits = int(confusion.diagonal().sum())
    low, high = wilson(hits, samples)
    present = confusion.sum(1) > 0
    per_class = confusion.diagonal()[present] / confusion.sum(1)[present]
    return Score(
        samples=samples,
        classes=classes,
        top1=hits / samples,
        low=low,
        high=high,
        top5=float((best == labels[:, None]).any(1).float().mean()),
        mean_class=float(per_class.mean()),
        confusion=confusion.tolist(),
    )


def wilson(hits: int, samples: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927)."""
    share = hits / samples
    centre = (share + z * z / (2 * samples)) / (1 + z * z / samples)
    half = z / (1 + z * z / samples) * math.sqrt(share * (1 - share) / samples + z * z / (4 * samples * samples))
    return max(0.0, centre - half), min(1.0, centre + half)
