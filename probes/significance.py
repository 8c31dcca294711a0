"""Do two heads evaluated on the same samples differ? Paired tests, and Holm's correction for multiple tests.

n samples of the same test set, in the same order for both.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from probes.metrics import DRAWS, Interval, central

Numbers = npt.NDArray[np.float64]
FLIPS = 9999  # random signs of the permutation test
_PER_DRAW = 2**22  # numbers drawn at once


@dataclass(frozen=True)
class Difference:
    """The second head's score minus the first one's."""

    value: float
    interval: Interval  # 95 %, bootstrap over the samples
    p: float  # two-sided, under the null hypothesis of no difference


def compare_hits(first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_], seed: int = 0) -> Difference:
    """Difference in top-1 of two heads on the same samples, hits bool [n]: exact McNemar test."""
    samples = len(first)
    lost, won = int((first & ~second).sum()), int((second & ~first).sum())
    shares = np.array([lost, samples - lost - won, won]) / samples
    drawn = np.random.default_rng(seed).multinomial(samples, shares, size=DRAWS)
    return Difference((won - lost) / samples, central((drawn[:, 2] - drawn[:, 0]) / samples), mcnemar(lost, won))


def compare_errors(first: Numbers, second: Numbers, seed: int = 0) -> Difference:
    """Difference in mean absolute error of two heads on the same samples, errors [n]: paired permutation test.

    ValueError if an error is not finite.
    """
    for name, errors in (("first", first), ("second", second)):
        if not np.isfinite(errors).all():
            count = int((~np.isfinite(errors)).sum())
            raise ValueError(f"{count} of {len(errors)} errors of the {name} head are not finite; probe again")
    difference = np.abs(second) - np.abs(first)
    random, samples = np.random.default_rng(seed), len(difference)
    means, sums = [], []
    for size in _cut(DRAWS, samples):
        means.append(difference[random.integers(samples, size=(size, samples))].mean(1))
    for size in _cut(FLIPS, samples):
        signs = random.integers(2, size=(size, samples), dtype=np.int8) * 2 - 1
        sums.append(signs @ difference)
    reached = np.abs(np.concatenate(sums)) >= abs(difference.sum()) * (1 - 1e-12)
    p = (1 + int(reached.sum())) / (1 + FLIPS)
    return Difference(float(difference.mean()), central(np.concatenate(means)), p)


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided exact p-value for the discordant pairs: samples that only the first or only the second gets right."""
    total, fewer = only_first + only_second, min(only_first, only_second)
    logs = (math.lgamma(total + 1) - math.lgamma(k + 1) - math.lgamma(total - k + 1) for k in range(fewer + 1))
    tail = math.fsum(math.exp(log - total * math.log(2)) for log in logs)
    return min(1.0, 2 * tail)


def correct_holm(values: Sequence[float]) -> list[float]:
    """Corrected p-values that control the family-wise error rate over several tests (Holm 1979)."""
    corrected, largest = [0.0] * len(values), 0.0
    for place, number in enumerate(sorted(range(len(values)), key=lambda number: values[number])):
        largest = max(largest, min(1.0, (len(values) - place) * values[number]))
        corrected[number] = largest
    return corrected


def _cut(draws: int, samples: int) -> list[int]:
    """Draws of n samples each, in parts that fit into memory."""
    size = max(1, _PER_DRAW // samples)
    return [min(size, draws - first) for first in range(0, draws, size)]
