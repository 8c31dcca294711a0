"""Split training samples into those a head is trained on and those it is selected on; the test set is not involved.

n samples. Splits are stratified by class; for regression all samples count as one class.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor


def split_held_out(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices (kept, held out) of labels [n]: the same fraction of each class, at least one if another can be kept."""
    held = torch.zeros(len(labels), dtype=torch.bool)
    for members in _shuffled_classes(labels, seed):
        count = min(max(1, round(share * len(members))), len(members) - 1)
        held[members[:count]] = True
    return (~held).nonzero().flatten(), held.nonzero().flatten()


def split_folds(labels: Tensor, folds: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Indices (kept, held out) of labels [n] for each fold: every sample is held out once."""
    fold = torch.empty(len(labels), dtype=torch.long)
    dealt = 0
    for members in _shuffled_classes(labels, seed):
        fold[members] = (torch.arange(len(members)) + dealt) % folds
        dealt += len(members)
    parts = [((fold != number).nonzero().flatten(), (fold == number).nonzero().flatten()) for number in range(folds)]
    return [(kept, held) for kept, held in parts if len(held) and len(kept)]


def hold_out(labels: Tensor, share: float, folds: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Pairs (kept, held out) for selecting a head: one, or one per fold; none if no class has two samples."""
    if folds:
        return split_folds(labels, folds, seed)
    kept, held = split_held_out(labels, share, seed)
    return [(kept, held)] if len(held) else []


def draw_share(labels: Tensor, share: float, seed: int) -> Tensor:
    """Indices of a fraction of every class of labels [n], at least one each; larger fractions contain smaller ones."""
    parts = [members[: max(1, round(share * len(members)))] for members in _shuffled_classes(labels, seed)]
    return torch.cat(parts).sort().values


# Student's t at 97.5 %, for 1, 2, ... degrees of freedom
_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)


def mean_interval(values: list[float], most: float = math.inf) -> tuple[float, float, float]:
    """Mean over seeds with its 95 % Student interval, clipped to 0 ... most; the interval is NaN for one seed."""
    count, mean = len(values), math.fsum(values) / len(values)
    if count == 1:
        return mean, math.nan, math.nan
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    factor = _STUDENT[count - 2] if count - 2 < len(_STUDENT) else 1.96 + 2.6 / (count - 1)
    half = factor * deviation / math.sqrt(count)
    return mean, max(0.0, mean - half), min(most, mean + half)


def _shuffled_classes(labels: Tensor, seed: int) -> Iterator[Tensor]:
    """The sample indices of each class, shuffled."""
    generator = torch.Generator().manual_seed(seed)
    for label in [None] if labels.is_floating_point() else labels.unique():
        members = torch.arange(len(labels)) if label is None else (labels == label).nonzero().flatten()
        yield members[torch.randperm(len(members), generator=generator)]
