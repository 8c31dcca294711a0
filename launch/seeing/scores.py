"""Does surprise tell impossible from possible? Accuracies and AUROC, with intervals over groups.

G groups of P pairs, C context lengths. Scores are [G, P, 2, C]: possible first, then impossible.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from probes.metrics import central

Numbers = npt.NDArray[np.float64]

DRAWS = 1000  # bootstrap samples
POOLS = ("mean", "max")  # over the windows of a video


@dataclass(frozen=True)
class Surprises:
    """Surprise of every video of the groups, by pooling over windows: each [G, P, 2, C]."""

    pooled: Mapping[str, Numbers]

    def part(self, groups: Sequence[int]) -> "Surprises":
        """Those of some groups."""
        return Surprises({pool: scores[list(groups)] for pool, scores in self.pooled.items()})


def pair_hits(scores: Numbers) -> Numbers:
    """1 where the impossible video of a pair is more surprising, 1/2 for a tie: [G, P, 2] -> [G, P]."""
    possible, impossible = scores[..., 0], scores[..., 1]
    return np.where(impossible > possible, 1.0, np.where(impossible == possible, 0.5, 0.0))


def group_hits(scores: Numbers) -> Numbers:
    """The same for the sums over a group's possible and impossible videos: [G, P, 2] -> [G]."""
    return pair_hits(scores.sum(1, keepdims=True))[:, 0]


def auroc(possible: Numbers, impossible: Numbers) -> float:
    """Probability that an impossible video is more surprising than any possible one; ties count half."""
    ordered = np.sort(possible.ravel())
    below = np.searchsorted(ordered, impossible.ravel(), "left")
    upto = np.searchsorted(ordered, impossible.ravel(), "right")
    return float((below + upto).mean() / 2 / len(ordered))


def choose_context(scores: Numbers) -> int:
    """The context, an index, with the highest accuracy over pairs on the validation groups [G, P, 2, C]."""
    accuracy = [pair_hits(scores[..., context]).mean() for context in range(scores.shape[-1])]
    return int(np.argmax(accuracy))


def score(found: Surprises, validation: Sequence[int], test: Sequence[int], seed: int = 0) -> dict[str, Any]:
    """Test results with 95 % intervals from drawing groups with replacement; contexts chosen on `validation`."""
    result: dict[str, Any] = {"groups": len(test)}
    for pool in POOLS:
        chosen = choose_context(found.pooled[pool][list(validation)])
        scores = found.pooled[pool][list(test)][..., chosen]
        result |= {f"context_{pool}": chosen, f"pairs_{pool}": interval(pair_hits(scores).mean(1), seed)}
        if pool == "mean":
            result["groups_mean"] = interval(group_hits(scores), seed)
            result["auroc"] = _auroc_interval(scores, seed)
    return result


def compare(
    one: Surprises, two: Surprises, contexts: tuple[int, int], test: Sequence[int], seed: int = 0
) -> list[float]:
    """Difference of the accuracies over pairs (mean pooling), one minus two, paired by group: value, low, high."""
    first, second = (
        pair_hits(found.pooled["mean"][list(test)][..., context]).mean(1)
        for found, context in zip((one, two), contexts, strict=True)
    )
    return interval(first - second, seed)


def split_groups(properties: Sequence[str], validation: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices of validation and test groups: the same fraction of each property, drawn at random.

    Raises ValueError if either would be empty.
    """
    random, chosen = np.random.default_rng(seed), []
    for name in dict.fromkeys(properties):
        members = [index for index, own in enumerate(properties) if own == name]
        chosen += random.permutation(members)[: round(len(members) * validation)].tolist()
    rest = sorted(set(range(len(properties))) - set(chosen))
    if not chosen or not rest:
        raise ValueError(
            f"validation={validation} of {len(properties)} groups leaves {len(chosen)} to choose the context length on "
            f"and {len(rest)} to test; both are needed"
        )
    return sorted(chosen), rest


def interval(values: Numbers, seed: int) -> list[float]:
    """Mean over groups with its 95 % bootstrap interval: value, low, high."""
    drawn = np.random.default_rng(seed).integers(len(values), size=(DRAWS, len(values)))
    return [float(values.mean()), *central(values[drawn].mean(1))]


def _auroc_interval(scores: Numbers, seed: int) -> list[float]:
    drawn = np.random.default_rng(seed).integers(len(scores), size=(DRAWS, len(scores)))
    found = [auroc(scores[row, :, 0], scores[row, :, 1]) for row in drawn]
    return [auroc(scores[..., 0], scores[..., 1]), *central(np.array(found))]
