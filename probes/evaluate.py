"""Frozen extractors, one training set, one reported set: features once, then every head on them."""

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from data.loader import EvalLoader
from probes.features import Extractor, Features, extract
from probes.fit import AttentiveConfig, Fitted, fit_attentive, fit_linear
from probes.heads import AttentiveHead, LinearHead, knn_probabilities
from probes.metrics import Score, score

HeadName = Literal["linear", "knn", "attentive"]
FORMAT = "vjepa-probe-1"


@dataclass(frozen=True)
class HeadsConfig:
    """Which heads are put on the features, and how they are trained."""

    names: tuple[HeadName, ...] = ("linear", "knn", "attentive")
    neighbours: int = 20  # of the k-NN vote
    attentive: AttentiveConfig = field(default_factory=AttentiveConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.names or self.neighbours < 1:
            raise ValueError(f"heads.names must not be empty and heads.neighbours at least 1, got {self}")


@dataclass(frozen=True)
class Result:
    """What one head scored on one kind of features."""

    features: str
    head: HeadName
    score: Score
    choice: dict[str, float]  # hyper-parameters chosen on held-out training samples
    missing: int  # unreadable samples of the reported set
    trained: AttentiveHead | LinearHead | None = field(default=None, repr=False, compare=False)  # None: k-NN

    def as_dict(self) -> dict[str, Any]:
        """Plain data for results.json."""
        return {
            "features": self.features,
            "head": self.head,
            **asdict(self.score),
            "choice": self.choice,
            "missing": self.missing,
        }


def evaluate(
    extractors: Mapping[str, Extractor],
    train: EvalLoader,
    test: EvalLoader,
    config: HeadsConfig,
    progress: Callable[[int], None] | None = None,
) -> list[Result]:
    """Score every head on the features of every extractor.

    Raises ValueError where the sets do not name the same classes or a sample has no label.
    """
    if train.manifest.classes != test.manifest.classes:
        raise ValueError(
            f"{train.config.path} and {test.config.path} must name the same classes, "
            f"got {train.manifest.classes} and {test.manifest.classes}; pack both with the same labels"
        )
    classes = len(train.manifest.classes)
    known, asked = (extract(extractors, loader, progress) for loader in (train, test))
    for found, loader in ((known, train), (asked, test)):
        labels = next(iter(found.values())).labels
        if int(labels.min()) < 0:
            count = int((labels < 0).sum())
            raise ValueError(f"{count} samples of {loader.config.path} have no label; a probe needs one for each")
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(os.cpu_count() or 1)  # the loading processes are gone
    missing = sum(len(names) for names in test.missing.values())
    results = []
    for name in extractors:
        for head in config.names:
            if head == "attentive" and known[name].tokens.shape[2] == 1:
                continue  # one token: there is nothing to attend to
            fitted = fit(head, known[name], asked[name], classes, config)
            verdict = score(fitted.probabilities, asked[name].labels)
            results.append(Result(name, head, verdict, fitted.choice, missing, fitted.head))
    return results


def fit(head: HeadName, known: Features, asked: Features, classes: int, config: HeadsConfig) -> Fitted:
    """Train one head on the known features and let it speak on the asked ones."""
    if head == "linear":
        return fit_linear(known.pooled, known.labels, asked.pooled, classes, seed=config.seed)
    if head == "attentive":
        return fit_attentive(known.tokens, known.labels, asked.tokens, classes, config.attentive, config.seed)
    views = asked.pooled.shape[1]
    votes = knn_probabilities(
        _flat(known.pooled),
        known.labels.repeat_interleave(known.pooled.shape[1]),
        _flat(asked.pooled),
        classes,
        config.neighbours,
    )
    averaged: Tensor = votes.unflatten(0, (-1, views))
    return Fitted(averaged.mean(1), {"neighbours": config.neighbours})


def table(results: list[Result]) -> str:
    """Top-1 in per cent with its 95 % interval: a row a kind of features, a column a head."""
    heads = list(dict.fromkeys(result.head for result in results))
    names = list(dict.fromkeys(result.features for result in results))
    found = {(result.features, result.head): str(result.score) for result in results}
    width = max(len(name) for name in names)
    lines = [" " * width + "".join(f"  {head:>22}" for head in heads)]
    for name in names:
        cells = "".join(f"  {found.get((name, head), '-'):>22}" for head in heads)
        lines.append(f"{name:<{width}}{cells}")
    return "\n".join(lines)


def _flat(pooled: Tensor) -> Tensor:
    return torch.flatten(pooled, 0, 1)
