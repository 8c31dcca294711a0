"""Fit and score every head on every kind of frozen features of a training and a test set."""

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
from probes.resume import FinishedHeads
from probes.tables import align_columns


@dataclass(frozen=True)
class HeadsConfig:
    """Which heads are evaluated, how they are trained and how they are selected."""

    names: tuple[str, ...] = field(
        default=("linear", "knn", "attentive"), metadata={"registry": HEADS}
    )  # registered heads
    neighbours: int = 20  # of the k-NN vote
    attentive: AttentiveConfig = field(default_factory=AttentiveConfig)
    held_out: float = 0.2  # fraction of the training samples used to select heads
    folds: int = 0  # use cross-validation with this many folds instead, for small sets; 0: off
    given: str = ""  # for the head "given": an official probe file, or the folder of an earlier probe
    shares: tuple[float, ...] = ()  # fractions of the labels for a few-shot curve, e.g. 0.01, 0.1, 1
    share_seeds: int = 3  # random subsets per fraction
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.names or self.neighbours < 1 or self.share_seeds < 1:
            raise ValueError(
                f"heads.names must not be empty, heads.neighbours and heads.share_seeds at least 1, got {self}"
            )
        for name in self.names:
            HEADS.find(name)
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"heads.names must not repeat a name, got {', '.join(self.names)}")
        if not 0 < self.held_out < 1:
            raise ValueError(f"heads.held_out must lie in (0, 1), got {self.held_out}")
        if self.folds < 0 or self.folds == 1:
            raise ValueError(f"heads.folds must be 0 (none) or at least 2, got {self.folds}")
        if any(not 0 < share <= 1 for share in self.shares) or len(set(self.shares)) < len(self.shares):
            raise ValueError(f"heads.shares must be distinct fractions in (0, 1], got {list(self.shares)}")


@dataclass(frozen=True)
class Answers:
    """A head's predictions for the samples of the test set."""

    keys: Sequence[str]
    labels: Tensor  # int64 [n], or float32 [n] for regression
    said: Tensor  # probabilities [n, C], or values [n, 1]
    missing: Mapping[str, list[str]]  # unreadable samples, by reason


@dataclass(frozen=True)
class ShareScore:
    """A point of a few-shot curve."""

    share: float  # fraction of the labels
    samples: int  # labelled samples used, for the first seed
    scores: tuple[float, ...]  # top-1 or mean absolute error, one per seed
    most: float = 1.0  # maximum possible score

    def as_dict(self) -> dict[str, Any]:
        """Plain data for results.json: the fields, and the mean score with its 95 % interval over the seeds."""
        mean, low, high = mean_interval(list(self.scores), self.most)
        interval = {} if math.isnan(low) else {"low": low, "high": high}
        return {"share": self.share, "samples": self.samples, "scores": list(self.scores), "mean": mean, **interval}


@dataclass(frozen=True)
class Result:
    """The score of one head on one kind of features."""

    features: str
    head: str
    score: Score | ValueScore
    choice: dict[str, float]  # hyper-parameters selected on held-out training samples
    missing: int  # unreadable samples of the test set
    answers: Answers = field(repr=False, compare=False)
    trained: AttentiveHead | LinearHead | None = field(default=None, repr=False, compare=False)  # None: k-NN
    seeds: tuple[float, ...] = ()  # score for each initialisation, if several were trained
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
    """Score every head on every kind of features; floating-point labels mean regression.

    place: a folder for finished heads, so that an interrupted evaluation resumes; it can be deleted once the results
    are written. progress is called with what is being trained. Raises ValueError if a sample has no label or a head
    diverged.
    """
    for name, features in (("training", next(iter(train.values()))), ("test", next(iter(test.values())))):
        _check_labels(features.labels, classes, name)
    kept = FinishedHeads.open(place, config, train, test) if place else None
    results = []
    for name, features in train.items():
        for head in config.names:
            if HEADS.find(head).tokens and features.clip_tokens == 1:
                continue  # one token per clip: nothing to attend to
            if progress is not None:
                progress(f"{head} on {name}")
            results.append(_measure(name, head, features, test[name], len(classes), config, kept))
    return results


def fit(
    head: str,
    train: Features,
    test: Features,
    classes: int,
    config: HeadsConfig,
    seed: int,
    place: Path | None = None,
) -> Fitted:
    """Train one head on the training features and evaluate it on the test features; the answers are on the CPU."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found: Fitted = HEADS.find(head).fit(
        train,
        test,
        FitContext(
            classes, seed, config.held_out, config.folds, config.neighbours, config.attentive, device, place,
            config.given,
        ),
    )  # fmt: skip
    return found


def table(results: Sequence[Result]) -> str:
    """Scores with 95 % intervals: one row per kind of features, one column per head."""
    heads = list(dict.fromkeys(result.head for result in results))
    found = {(result.features, str(result.head)): str(result.score) for result in results}
    return _lay_out(list(dict.fromkeys(result.features for result in results)), heads, found)


def share_table(results: Sequence[Result]) -> str:
    """Few-shot curves: one row per head and features, one column per fraction of labels; empty if there are none."""
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
    name: str, head: str, train: Features, test: Features, classes: int, config: HeadsConfig, kept: FinishedHeads | None
) -> Result:
    """One head on one kind of features, and its few-shot curve."""

    def run(subset: Features, share: float, seed: int) -> Fitted:
        task = f"{name} {head} {share:g} {seed}"
        if kept is None:
            found = fit(head, subset, test, classes, config, seed)
        else:
            found = kept.run(task, lambda folder: fit(head, subset, test, classes, config, seed, folder))
        if not all(answers.isfinite().all() for answers in (found.probabilities, *found.repeats)):
            raise ValueError(
                f"{head} on {name} gave answers that are not finite: lower heads.attentive.lrs if it diverged, or "
                "check the encoder's features (precision=fp32)"
            )
        return found

    fitted = run(train, 1, config.seed)
    score_answers = score if classes else _score_values
    points = []
    for share in sorted(config.shares):
        scores, sizes = [], []
        for seed in range(config.seed, config.seed + config.share_seeds):
            index = draw_share(train.labels, share, seed)
            again = fitted if share == 1 and seed == config.seed else run(train.subset(index), share, seed)
            scores.append(_headline(again.probabilities, test.labels))
            sizes.append(len(index))
        points.append(ShareScore(share, sizes[0], tuple(scores), 1.0 if classes else math.inf))
    seeds = tuple(_headline(answers, test.labels) for answers in (fitted.probabilities, *fitted.repeats))
    return Result(
        features=name,
        head=head,
        score=score_answers(fitted.probabilities, test.labels),
        choice=fitted.choice,
        missing=sum(len(names) for names in test.missing.values()),
        answers=Answers(test.keys, test.labels, fitted.probabilities, test.missing),
        trained=fitted.head,
        seeds=seeds if fitted.repeats else (),
        shares=tuple(points),
    )


def _headline(said: Tensor, labels: Tensor) -> float:
    """Top-1 or mean absolute error."""
    if labels.is_floating_point():
        return float((said[:, 0] - labels).abs().mean())
    return float((said.argmax(1) == labels).double().mean())


def _score_values(said: Tensor, labels: Tensor) -> ValueScore:
    return score_values(said[:, 0], labels)


def _check_labels(labels: Tensor, classes: Sequence[str], name: str) -> None:
    if labels.is_floating_point():
        count = int((~labels.isfinite()).sum())
        if classes:
            raise ValueError(f"the {name} set has regression targets, so it must have no classes; got {len(classes)}")
    else:
        count = int((labels < 0).sum())
        if not classes:
            raise ValueError(f"the {name} set must name its classes; pack its videos with labels")
    if count:
        raise ValueError(f"{count} samples of the {name} set have no label; a probe needs one for each")


def _lay_out(rows: Sequence[str], columns: Sequence[str], cells: Mapping[tuple[str, str], str]) -> str:
    """A table with named rows and columns; `-` for missing cells."""
    lines = [[row, *(cells.get((row, column), "-") for column in columns)] for row in rows]
    return align_columns([["", *columns], *lines])
