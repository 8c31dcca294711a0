"""The registered kinds of probe heads, and how each is fitted to frozen features.

A custom head is a function in a module listed under `plugins`:

    @head("nearest_mean")
    def fit_nearest_mean(train: Features, test: Features, context: FitContext) -> Fitted: ...
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from probes.features import Features
from probes.fit import AttentiveConfig, Fitted, Recipe, fit_attentive, fit_linear, predict
from probes.heads import knn_probabilities, knn_values
from probes.saved import load_attentive
from probes.task import Task
from vjepa.registry import Registry


@dataclass(frozen=True)
class FitContext:
    """The settings a head gets besides the features."""

    classes: int  # 0: regression
    seed: int
    held_out: float  # fraction of the training samples used to select hyper-parameters
    folds: int  # use cross-validation with this many folds instead; 0: off
    neighbours: int  # of the k-NN vote
    attentive: AttentiveConfig
    device: str
    place: Path | None = None  # folder for training state, to resume after an interruption
    given: str = ""  # file of the head "given"


Fit = Callable[[Features, Features, FitContext], Fitted]


@dataclass(frozen=True)
class HeadKind:
    """How a kind of head is fitted on training features and evaluated on test features."""

    fit: Fit  # (train, test, context) -> answers for the test samples, on the CPU
    tokens: bool  # does it use all tokens of a clip, or only their mean?
    depth: int | None = None  # layers, of attentive heads


HEADS: Registry[HeadKind] = Registry("heads.names", "probes.kinds")


def head(name: str, tokens: bool = False) -> Callable[[Fit], Fit]:
    """Decorator: register a function (train, test, context) -> Fitted as the head `name`."""

    def add(fit: Fit) -> Fit:
        HEADS.register(name)(HeadKind(fit, tokens))
        return fit

    return add


@head("linear")
def fit_linear_head(train: Features, test: Features, context: FitContext) -> Fitted:
    """Logistic regression, or ridge regression, on the mean of the tokens."""
    features, labels, others = (tensor.to(context.device) for tensor in (train.pooled, train.labels, test.pooled))
    return fit_linear(features, labels, others, context.classes, context.held_out, context.seed, context.folds)


@head("knn")
def fit_knn_head(train: Features, test: Features, context: FitContext) -> Fitted:
    """A vote of the nearest training samples or, for regression, the mean of their values."""
    features, labels, others = (tensor.to(context.device) for tensor in (train.pooled, train.labels, test.pooled))
    queries, count = others.flatten(0, 1), context.neighbours
    if labels.is_floating_point():
        answers = knn_values(features, labels, queries, count)[:, None]
    else:
        answers = knn_probabilities(features, labels, queries, context.classes, count)
    averaged: Tensor = answers.cpu().unflatten(0, (len(others), -1))
    return Fitted(averaged.mean(1), {"neighbours": count})


@head("given", tokens=True)
def use_given_head(train: Features, test: Features, context: FitContext) -> Fitted:
    """The attentive head in heads.given, not trained: an official probe file, or one saved by an earlier probe."""
    if not context.given:
        raise ValueError("heads.names=[given] needs heads.given: an official probe file, or the folder of a probe")
    saved = load_attentive(context.given)
    width, outputs = saved.head.linear.in_features, saved.head.linear.out_features
    if (width, outputs) != (test.shape[1], context.classes or 1):
        raise ValueError(
            f"heads.given={context.given} takes tokens of width {width} and has {outputs} outputs; the encoder has "
            f"width {test.shape[1]} and the test set {context.classes or 'no'} classes"
        )
    trained = saved.head.to(context.device)
    answers = predict(lambda tokens: trained(tokens.to(context.device).float())[None], test, Task(context.classes))
    return Fitted(answers[0], {})


def _attentive(depth: int) -> HeadKind:
    def fit(train: Features, test: Features, context: FitContext) -> Fitted:
        task = Task.of(train.labels, context.classes, context.attentive.loss)
        held_out, folds = context.held_out, context.folds
        recipe = Recipe(task, context.attentive, depth, context.seed, held_out, folds, context.device, context.place)
        return fit_attentive(train, test, recipe)

    return HeadKind(fit, tokens=True, depth=depth)


HEADS.register("attentive")(_attentive(1))  # V-JEPA 1's
HEADS.register("attentive4")(_attentive(4))  # V-JEPA 2's
