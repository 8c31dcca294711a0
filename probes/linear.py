"""The linear probe on mean-pooled features: logistic regression for classes, ridge regression for values.

n clips, V views, D width, C classes.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from probes.choose import hold_out
from probes.heads import AttentiveHead, LinearHead
from probes.task import Task, choose_best

LINEAR_DECAYS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
RIDGE_DECAYS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)

Train = Callable[[Tensor, Tensor], dict[float, LinearHead]]  # features [n, V, D], labels [n] -> one head per decay


class Fitted(NamedTuple):
    """The selected head, its answers for the test set and its hyper-parameters."""

    probabilities: Tensor  # [n, C], averaged over views; for regression the values [n, 1]
    choice: dict[str, float]  # hyper-parameters, and `held_out`: the accuracy (or mean error) that selected them
    head: AttentiveHead | LinearHead | None = None  # None if nothing was trained
    repeats: tuple[Tensor, ...] = ()  # answers of the same head with other initialisations


def fit_linear(
    train: Tensor, labels: Tensor, test: Tensor, classes: int, held_out: float = 0.2, seed: int = 0, folds: int = 0
) -> Fitted:
    """A linear head on train [n, V, D]: weight decay selected on held-out samples (or folds), then refit on all.

    labels: int64 [n] for logistic regression, float32 [n] for ridge regression.
    """
    task = Task.of(labels, classes)

    def fit(features: Tensor, truth: Tensor, decays: tuple[float, ...]) -> dict[float, LinearHead]:
        if task.classes:
            return _logistic_regressions(features, truth, classes, decays)
        return _ridge_regressions(features, truth, decays)

    decays = LINEAR_DECAYS if task.classes else RIDGE_DECAYS
    good, bad, count = torch.zeros(len(decays)).double(), torch.zeros(len(decays)).double(), 0
    for kept, held in hold_out(labels.cpu(), held_out, folds, seed):
        heads = fit(train[kept], labels[kept], decays)
        answers = torch.stack([predict_linear(heads[decay], train[held], bool(classes)) for decay in decays])
        for total, found in zip((good, bad), task.grade(answers, labels[held]), strict=True):
            total += found.sum(1).cpu()
        count += len(held)
    best = choose_best(good.flip(0), bad.flip(0))  # ties go to the strongest decay
    decay = decays[::-1][best] if count else decays[len(decays) // 2]
    head = fit(train, labels, (decay,))[decay]
    choice = {"weight_decay": decay}
    if count:
        choice["held_out"] = abs(float(good.flip(0)[best])) / count
    return Fitted(predict_linear(head, test, bool(classes)).cpu(), choice, head.cpu().requires_grad_(False))


@torch.no_grad()
def predict_linear(head: LinearHead, features: Tensor, probabilities: bool = True) -> Tensor:
    """Answers for features [n, V, D], averaged over views: class probabilities [n, C], or the value [n, 1]."""
    outputs: Tensor = head(features.flatten(0, 1))
    answers = outputs.softmax(1) if probabilities else outputs
    averaged: Tensor = answers.unflatten(0, features.shape[:2])
    return averaged.mean(1)


def _logistic_regressions(
    features: Tensor, labels: Tensor, classes: int, decays: tuple[float, ...]
) -> dict[float, LinearHead]:
    """Minimise mean cross entropy + decay * |w|^2 for each decay, strongest first, each from the previous solution."""
    flat, repeated = features.flatten(0, 1), labels.repeat_interleave(features.shape[1])
    start = LinearHead(flat.shape[1], classes).to(flat.device)
    start.measure(flat)
    ready = start.standardise(flat)  # once instead of in every evaluation of the loss
    heads = {}
    for decay in sorted(decays, reverse=True):
        head = LinearHead(flat.shape[1], classes).to(flat.device)
        head.load_state_dict(start.state_dict())
        _minimise(head, ready, repeated, decay)
        heads[decay] = start = head
    return heads


def _minimise(head: LinearHead, ready: Tensor, labels: Tensor, weight_decay: float) -> None:
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        penalty = weight_decay * head.linear.weight.square().sum()
        loss = functional.cross_entropy(head.linear(ready), labels) + penalty
        loss.backward()
        return loss

    optimizer.step(closure)


@torch.no_grad()
def _ridge_regressions(features: Tensor, values: Tensor, decays: tuple[float, ...]) -> dict[float, LinearHead]:
    """Minimise mean squared error + decay * |w|^2 for each decay."""
    flat, repeated = features.flatten(0, 1), values.repeat_interleave(features.shape[1]).double()
    measured = LinearHead(flat.shape[1], 1).to(flat.device)
    measured.measure(flat)
    ready = measured.standardise(flat).double()
    middle = repeated.mean()
    solve = _ridge_solver(ready, repeated - middle)
    heads = {}
    for decay in decays:
        head = LinearHead(flat.shape[1], 1).to(flat.device)
        head.load_state_dict(measured.state_dict())
        head.linear.weight.copy_(solve(decay)[None])
        head.linear.bias.fill_(float(middle))
        heads[decay] = head
    return heads


def _ridge_solver(rows: Tensor, values: Tensor) -> Callable[[float], Tensor]:
    """A function decay -> weights [D], for rows [n, D] and values [n], from one eigendecomposition of the smaller Gram.

    With X/sqrt(n) and y/sqrt(n): w = (X'X + decay)^-1 X'y = X' (XX' + decay)^-1 y.
    """
    count = len(rows)
    if count < rows.shape[1]:
        strengths, directions = torch.linalg.eigh(rows @ rows.mT / count)
        along, back = directions.mT @ values / count, rows.mT @ directions
    else:
        strengths, back = torch.linalg.eigh(rows.mT @ rows / count)
        along = back.mT @ (rows.mT @ values / count)
    return lambda decay: back @ (along / (strengths.clamp(min=0) + decay))
