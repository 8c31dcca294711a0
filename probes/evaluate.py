"""Frozen features of a training set and of the reported one, by name: every head on all of them, and its score."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from probes.choose import draw_share, mean_interval
from probes.features import Features
from probes.fit import AttentiveConfig, Fitted
from probes.heads import AttentiveHead, LinearHead
from probes.kinds import HEADS, FitContext
from probes.metrics import Score, ValueScore, score, score_values
from probes.resume import Place
from probes.tables import align_columns


@dataclass(frozen=True)
class HeadsConfig:
    """Which heads are put on the features, how they are trained and on what they are chosen."""

    names: tuple[str, ...] = field(
        default=("linear", "knn", "attentive"), metadata={"registry": HEADS}
    )  # registered heads
    neighbours: int = 20  # of the k-NN vote
    attentive: AttentiveConfig = field(default_factory=AttentiveConfig)
    held_out: float = 0.2  # share of the training samples on which heads are chosen
    folds: int = 0  # of cross-validation instead, for small sets; 0: none
    shares: tuple[float, ...] = ()  # of the labels, for a few-shot curve, as 0.01, 0.1, 1
    share_seeds: int = 3  # subsets drawn for each share
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.names or self.neighbours < 1 or self.share_seeds < 1:
            raise ValueError(
                f"heads.names must not be empty, heads.neighbours and heads.share_seeds at least 1, got {self}"
            )
        for name in self.names:
            HEADS.find(name)
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"heads.names must be different ones, got {', '.join(self.names)}")
        if not 0 < self.held_out < 1:
            raise ValueError(f"heads.held_out must lie in (0, 1), got {self.held_out}")
        if self.folds < 0 or self.folds == 1:
            raise ValueError(f"heads.folds must be 0 (none) or at least 2, got {self.folds}")
        if any(not 0 < share <= 1 for share in self.shares) or len(set(self.shares)) < len(self.shares):
            raise ValueError(f"heads.shares must be different ones in (0, 1], got {list(self.shares)}")


@dataclass(frozen=True)
class Answers:
    """What a head said of each sample of the reported set."""

    keys: Sequence[str]
    labels: Tensor  # int64 [n], or float32 [n] to regress
    said: Tensor  # probabilities [n, C], or values [n, 1]
    missing: Mapping[str, list[str]]  # unreadable samples, by reason


@dataclass(frozen=True)
class ShareScore:
    """A point of a few-shot curve."""

    share: float  # of the labels
    samples: int  # that it stands for, of the first seed
    scores: tuple[float, ...]  # top-1, or the mean absolute error; one a seed
    most: float = 1.0  # that a score can be

    def as_dict(self) -> dict[str, Any]:
        """Plain data for results.json: beside the fields their mean and its 95 % interval over the seeds."""
        mean, low, high = mean_interval(list(self.scores), self.most)
        interval = {} if math.isnan(low) else {"low": low, "high": high}
        return {"share": self.share, "samples": self.samples, "scores": list(self.scores), "mean": mean, **interval}


@dataclass(frozen=True)
class Result:
    """What one head scored on one kind of features."""

    features: str
    head: str
    score: Score | ValueScore
    choice: dict[str, float]  # hyper-parameters chosen on held-out training samples
    missing: int  # unreadable samples of the reported set
    answers: Answers = field(repr=False, compare=False)
    trained: AttentiveHead | LinearHead | None = field(default=None, repr=False, compare=False)  # None: k-NN
    seeds: tuple[float, ...] = ()  # the score of each seed of its first weights, where several were trained
    shares: tuple[ShareScore, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain data for results.json."""
        return {
            "features": self.features,
            "head": self.head,
            **self.score.as_dict(),
            "choice": self.choice,
            "missing": self.missing,
            "seeds": list(self.seeds),
            "shares": [point.as_dict() for point in self.shares],
        }


def evaluate(
    train: Mapping[str, Features],
    test: Mapping[str, Features],
    classes: Sequence[str],
    config: HeadsConfig,
    place: Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[Result]:
    """Score every head on every kind of features; labels that are floating point numbers are regressed.

    place: a folder for what is finished, so that an evaluation that was stopped goes on; it may be removed once the
    results are written. progress is told what is being trained. Raises ValueError where a sample has no label, or a
    head diverged.
    """
    for name, features in (("training", next(iter(train.values()))), ("reported", next(iter(test.values())))):
        _check_labels(features.labels, classes, name)
    kept = Place.open(place, config, train, test) if place else None
    results = []
    for name, known in train.items():
        for head in config.names:
            if HEADS.find(head).tokens and known.clip_tokens == 1:
                continue  # one token a clip: there is nothing to attend to
            if progress is not None:
                progress(f"{head} on {name}")
            results.append(_measure(name, head, known, test[name], len(classes), config, kept))
    return results


def fit(
    head: str,
    known: Features,
    asked: Features,
    classes: int,
    config: HeadsConfig,
    seed: int,
    place: Path | None = None,
) -> Fitted:
    """Train one head on the known features and let it speak on the asked ones; what it says is on the CPU."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found: Fitted = HEADS.find(head).fit(
        known,
        asked,
        FitContext(classes, seed, config.held_out, config.folds, config.neighbours, config.attentive, device, place),
    )
    return found


def table(results: Sequence[Result]) -> str:
    """The score with its 95 % interval: a row a kind of features, a column a head."""
    heads = list(dict.fromkeys(result.head for result in results))
    found = {(result.features, str(result.head)): str(result.score) for result in results}
    return _lay_out(list(dict.fromkeys(result.features for result in results)), heads, found)


def share_table(results: Sequence[Result]) -> str:
    """The few-shot curves: a row a head on a kind of features, a column a share of the labels; empty without."""
    shares = sorted({point.share for result in results for point in result.shares})
    if not shares:
        return ""
    found, names = {}, []
    for result in results:
        name = f"{result.features}, {result.head}"
        names.append(name)
        for point in result.shares:
            mean, low, high = mean_interval(list(point.scores), point.most)
            size, unit = (100, " %") if isinstance(result.score, Score) else (1, "")
            interval = "" if math.isnan(low) or high - low < 1e-9 else f" ({size * low:.3g} to {size * high:.3g})"
            found[name, f"{100 * point.share:g} %"] = f"{size * mean:.3g}{unit}{interval}"
    return _lay_out(names, [f"{100 * share:g} %" for share in shares], found)


def _measure(
    name: str, head: str, known: Features, asked: Features, classes: int, config: HeadsConfig, kept: Place | None
) -> Result:
    """One head on one kind of features, and its few-shot curve."""

    def run(subset: Features, share: float, seed: int) -> Fitted:
        words = f"{name} {head} {share:g} {seed}"
        if kept is None:
            found = fit(head, subset, asked, classes, config, seed)
        else:
            found = kept.run(words, lambda folder: fit(head, subset, asked, classes, config, seed, folder))
        if not all(said.isfinite().all() for said in (found.probabilities, *found.repeats)):
            raise ValueError(
                f"{head} on {name} gave answers that are not finite: lower heads.attentive.lrs if it diverged, or "
                "check the encoder's features (precision=fp32)"
            )
        return found

    fitted = run(known, 1, config.seed)
    judge = score if classes else _judge_values
    points = []
    for share in sorted(config.shares):
        scores, sizes = [], []
        for seed in range(config.seed, config.seed + config.share_seeds):
            index = draw_share(known.labels, share, seed)
            again = fitted if share == 1 and seed == config.seed else run(known.subset(index), share, seed)
            scores.append(_headline(again.probabilities, asked.labels))
            sizes.append(len(index))
        points.append(ShareScore(share, sizes[0], tuple(scores), 1.0 if classes else math.inf))
    seeds = tuple(_headline(said, asked.labels) for said in (fitted.probabilities, *fitted.repeats))
    return Result(
        features=name,
        head=head,
        score=judge(fitted.probabilities, asked.labels),
        choice=fitted.choice,
        missing=sum(len(names) for names in asked.missing.values()),
        answers=Answers(asked.keys, asked.labels, fitted.probabilities, asked.missing),
        trained=fitted.head,
        seeds=seeds if fitted.repeats else (),
        shares=tuple(points),
    )


def _headline(said: Tensor, labels: Tensor) -> float:
    """Top-1, or the mean absolute error."""
    if labels.is_floating_point():
        return float((said[:, 0] - labels).abs().mean())
    return float((said.argmax(1) == labels).double().mean())


def _judge_values(said: Tensor, labels: Tensor) -> ValueScore:
    return score_values(said[:, 0], labels)


def _check_labels(labels: Tensor, classes: Sequence[str], name: str) -> None:
    if labels.is_floating_point():
        count = int((~labels.isfinite()).sum())
        if classes:
            raise ValueError(f"the {name} set has values to regress, so there are no classes; got {len(classes)}")
    else:
        count = int((labels < 0).sum())
        if not classes:
            raise ValueError(f"the {name} set must name its classes; pack its videos with labels")
    if count:
        raise ValueError(f"{count} samples of the {name} set have no label; a probe needs one for each")


def _lay_out(rows: Sequence[str], columns: Sequence[str], cells: Mapping[tuple[str, str], str]) -> str:
    """Rows and columns by name, - where there is no cell."""
    lines = [[row, *(cells.get((row, column), "-") for column in columns)] for row in rows]
    return align_columns([["", *columns], *lines])
