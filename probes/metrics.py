"""Scores over a whole set, each with 95 % intervals. n samples, C classes.

Wilson's interval is for a proportion of independent samples; the bootstrap resamples the videos of the set.
"""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

Interval = tuple[float, float]
DRAWS = 2000  # of the bootstrap
_PER_DRAW = 2**22  # numbers drawn at once


@dataclass(frozen=True)
class Score:
    """Classification scores of one probe on one set; fractions in [0, 1]."""

    samples: int
    classes: int
    top1: float
    low: float  # 95 % Wilson interval of top1
    high: float
    top5: float
    mean_class: float  # mean over classes of the per-class accuracy
    confusion: list[list[int]]  # rows: true class, columns: predicted class
    wilson: dict[str, Interval] = field(default_factory=dict)  # of top1 and top5
    bootstrap: dict[str, Interval] = field(default_factory=dict)  # of top1, top5 and mean_class

    def __str__(self) -> str:
        return f"{100 * self.top1:.1f} % ({100 * self.low:.1f} to {100 * self.high:.1f})"

    def per_class(self) -> list[dict[str, Any]]:
        """For each class that has samples: number, sample count, accuracy and Wilson interval."""
        rows = []
        for number, row in enumerate(self.confusion):
            if samples := sum(row):
                low, high = wilson(row[number], samples)
                accuracy = row[number] / samples
                rows.append({"class": number, "samples": samples, "accuracy": accuracy, "low": low, "high": high})
        return rows

    def as_dict(self) -> dict[str, Any]:
        """Plain data for results.json."""
        return {**asdict(self), "per_class": self.per_class()}


@dataclass(frozen=True)
class ValueScore:
    """Regression scores of one probe on one set."""

    samples: int
    mae: float  # mean absolute error, in the unit of the values
    r2: float  # fraction of variance explained; 0 for always predicting the mean
    bootstrap: dict[str, Interval] = field(default_factory=dict)  # of mae and r2

    def __str__(self) -> str:
        low, high = self.bootstrap["mae"]
        return f"{self.mae:.4g} ({low:.4g} to {high:.4g})"

    def as_dict(self) -> dict[str, Any]:
        """Plain data for results.json."""
        return asdict(self)


def score(probabilities: Tensor, labels: Tensor, seed: int = 0) -> Score:
    """Score probabilities [n, C] against labels [n]; ValueError for an empty set or a label outside 0 ... C-1."""
    samples, classes = probabilities.shape
    _check_samples(samples)
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise ValueError(
            f"labels must lie in 0 ... {classes - 1}, got {int(labels.min())} ... {int(labels.max())}; "
            f"-1 means a video without a label"
        )
    predicted = probabilities.argmax(1)
    confusion = torch.zeros(classes, classes, dtype=torch.long)
    confusion.index_put_((labels, predicted), torch.ones_like(labels), accumulate=True)
    best = probabilities.topk(min(5, classes), dim=1).indices
    in_top5 = (best == labels[:, None]).any(1)
    hits, hits5 = int(confusion.diagonal().sum()), int(in_top5.sum())
    counts = confusion.sum(1)
    present = counts > 0
    intervals = {"top1": wilson(hits, samples), "top5": wilson(hits5, samples)}
    return Score(
        samples=samples,
        classes=classes,
        top1=hits / samples,
        low=intervals["top1"][0],
        high=intervals["top1"][1],
        top5=hits5 / samples,
        mean_class=float((confusion.diagonal()[present].double() / counts[present]).mean()),
        confusion=confusion.tolist(),
        wilson=intervals,
        bootstrap=bootstrap_accuracy(labels, predicted == labels, in_top5, seed),
    )


def score_values(values: Tensor, labels: Tensor, seed: int = 0) -> ValueScore:
    """Score values [n] against the true ones [n]; ValueError for an empty set."""
    _check_samples(len(labels))
    truth, error = labels.double(), values.double() - labels.double()
    mae, r2 = _errors(error, truth, torch.arange(len(truth))[None])
    return ValueScore(len(truth), float(mae), float(r2), bootstrap_values(error, truth, seed))


def wilson(hits: int, samples: int, z: float = 1.959964) -> Interval:
    """95 % interval of a proportion (Wilson 1927)."""
    share = hits / samples
    centre = (share + z * z / (2 * samples)) / (1 + z * z / samples)
    half = z / (1 + z * z / samples) * math.sqrt(share * (1 - share) / samples + z * z / (4 * samples * samples))
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap_accuracy(
    labels: Tensor, hit: Tensor, in_top5: Tensor, seed: int = 0, draws: int = DRAWS
) -> dict[str, Interval]:
    """95 % bootstrap intervals over samples: `hit` bool [n] is top-1 correct, `in_top5` bool [n] top-5 correct.

    Only the counts per class of top-1 hits, other top-5 hits and misses matter, so these are drawn from a multinomial:
    the same distribution as drawing n samples with replacement.
    """
    samples = len(labels)
    output = torch.where(hit, 0, torch.where(in_top5, 1, 2))
    classes, number = labels.unique(return_inverse=True)
    shares = torch.bincount(number * 3 + output, minlength=3 * len(classes)).numpy() / samples
    random = np.random.default_rng(seed)
    top1, top5, mean_class = [], [], []
    for first in range(0, draws, size := max(1, _PER_DRAW // len(shares))):
        drawn = random.multinomial(samples, shares, size=min(size, draws - first)).reshape(-1, len(classes), 3)
        counts = drawn.sum(2)
        top1.append(drawn[:, :, 0].sum(1) / samples)
        top5.append(drawn[:, :, :2].sum((1, 2)) / samples)
        inside = drawn[:, :, 0] / np.maximum(counts, 1)
        mean_class.append(inside.sum(1) / (counts > 0).sum(1))
    found = {"top1": top1, "top5": top5, "mean_class": mean_class}
    return {name: central(np.concatenate(parts)) for name, parts in found.items()}


def bootstrap_values(error: Tensor, truth: Tensor, seed: int = 0, draws: int = DRAWS) -> dict[str, Interval]:
    """95 % bootstrap intervals over the samples of the mean absolute error and R2: error [n], truth [n]."""
    generator = torch.Generator().manual_seed(seed)
    maes, r2s = [], []
    for first in range(0, draws, size := max(1, _PER_DRAW // len(truth))):
        drawn = torch.randint(len(truth), (min(size, draws - first), len(truth)), generator=generator)
        mae, r2 = _errors(error, truth, drawn)
        maes.append(mae)
        r2s.append(r2)
    return {"mae": central(torch.cat(maes).numpy()), "r2": central(torch.cat(r2s).numpy())}


def central(drawn: np.ndarray[Any, Any]) -> Interval:
    """The central 95 % interval of the drawn values."""
    low, high = np.quantile(drawn, (0.025, 0.975))
    return float(low), float(high)


def _errors(error: Tensor, truth: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
    """Mean absolute error and R2 of each row of indices [m, n]."""
    wrong, values = error[drawn], truth[drawn]
    spread = (values - values.mean(1, keepdim=True)).square().sum(1)
    return wrong.abs().mean(1), 1 - wrong.square().sum(1) / spread.clamp(min=1e-30)


def _check_samples(samples: int) -> None:
    if not samples:
        raise ValueError("cannot score an empty set: no sample of the evaluation set was readable")
