"""Train attentive heads on frozen tokens and select among them on held-out training samples.

A sweep reads every token once per epoch, whatever the number of heads. The test set is not used for the selection. K
heads, n clips, V views, N tokens, D width, C classes.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.files import replacing
from probes.choose import hold_out
from probes.features import Features
from probes.heads import AttentiveHead, Style
from probes.linear import Fitted, fit_linear
from probes.stack import TOKENS_AT_ONCE, Candidate, Stack
from probes.task import Loss, Task, choose_best

__all__ = ["AttentiveConfig", "Fitted", "Recipe", "fit_attentive", "fit_linear", "predict_attentive", "train_heads"]

SAVE_EVERY = 120.0  # minimum seconds between two saves of the training state, which takes up to 24 GB for a sweep


@dataclass(frozen=True)
class AttentiveConfig:
    """Attentive heads, one per learning rate, weight decay and seed, trained together in one pass over the data."""

    lrs: tuple[float, ...] = (3e-3, 1e-3, 3e-4)  # initial learning rates; cosine to 0
    weight_decays: tuple[float, ...] = (0.01, 0.1)
    seeds: int = 1  # initialisations of each; selection is by their mean, the first one is reported
    epochs: int = 20
    batch: int = 64  # samples per step
    heads: int = 0  # attention heads; 0: the same number as the encoder
    loss: Loss = "l1"  # for regression
    style: Style = "transformers"  # LayerNorm epsilon and initial scale; published: V-JEPA's 1e-5 and 1 / sqrt(2 l)

    def __post_init__(self) -> None:
        if not self.lrs or not self.weight_decays:
            raise ValueError("attentive.lrs and attentive.weight_decays must have at least one value each")
        for name in ("seeds", "epochs", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"attentive.{name} must be at least 1, got {getattr(self, name)}")

    @property
    def grid(self) -> list[tuple[float, float]]:
        """Pairs of learning rate and weight decay."""
        return [(lr, decay) for lr in self.lrs for decay in self.weight_decays]


@dataclass(frozen=True)
class Recipe:
    """The settings shared by all heads of a sweep, and where to save the training state."""

    task: Task
    config: AttentiveConfig = field(default_factory=AttentiveConfig)
    depth: int = 1
    seed: int = 0  # of sample order, held-out split and initial weights
    held_out: float = 0.2  # fraction of the training samples used to select a head
    folds: int = 0  # use cross-validation with this many folds instead; 0: off
    device: str = "cpu"
    place: Path | None = None  # folder for the training state, saved after an epoch at most every SAVE_EVERY seconds


def fit_attentive(train: Features, test: Features, recipe: Recipe) -> Fitted:
    """Select the best head on held-out training samples, refit it on all of them, and evaluate it on the test set."""
    config, task = recipe.config, recipe.task
    grid = config.grid
    seeds = [recipe.seed + number for number in range(config.seeds)]
    candidates = [Candidate(lr, decay, seed) for lr, decay in grid for seed in seeds]
    good, bad, count = torch.zeros(len(candidates)).double(), torch.zeros(len(candidates)).double(), 0
    parts = hold_out(train.labels, recipe.held_out, recipe.folds, recipe.seed) if len(grid) > 1 else []
    for number, (kept, held) in enumerate(parts):
        stack = train_heads(train.subset(kept), candidates, recipe, f"choice-{number}")
        held_out = train.subset(held)
        for index, answers in _answers(stack.answer, held_out, task):
            for total, found in zip((good, bad), task.grade(answers, held_out.labels[index]), strict=True):
                total += found.sum(1)
        count += len(held)
    best = choose_best(*(total.unflatten(0, (len(grid), -1)).mean(1) for total in (good, bad)))
    lr, decay = grid[best]
    final = train_heads(train, [Candidate(lr, decay, seed) for seed in seeds], recipe, "final")
    answers = predict(final.answer, test, task)
    choice = {"lr": lr, "weight_decay": decay}
    if count:
        choice["held_out"] = abs(float(good.unflatten(0, (len(grid), -1)).mean(1)[best])) / count
    return Fitted(answers[0], choice, scale_outputs(final.head(0), task), tuple(answers[1:]))


def train_heads(features: Features, candidates: list[Candidate], recipe: Recipe, name: str = "") -> Stack:
    """Train heads on the same batches; epoch e uses view e % V of every sample."""
    config, count = recipe.config, len(features)
    width = features.shape[1]
    heads = config.heads or max(1, width // 64)
    shape = (width, heads if width % heads == 0 else math.gcd(width, heads), recipe.task.outputs, recipe.depth)
    stack = Stack(candidates, shape, config.epochs * -(-count // config.batch), recipe.device, config.style)
    generator = torch.Generator().manual_seed(recipe.seed)
    file = recipe.place / f"{name}.pt" if recipe.place else None
    first, saved = _resume(file, stack, generator), time.monotonic()
    for epoch in range(first, config.epochs):
        chosen = torch.randperm(count, generator=generator).split(config.batch)
        places = [(index, torch.full_like(index, epoch % features.views)) for index in chosen]
        for index, tokens in zip(chosen, features.walk(places), strict=True):
            stack.step(tokens, features.labels[index], recipe.task.measure)
        if file is not None and time.monotonic() - saved >= SAVE_EVERY:
            _save({"epoch": epoch + 1, "generator": generator.get_state(), **stack.state_dict()}, file)
            saved = time.monotonic()
    return stack


def predict(outputs: Callable[[Tensor], Tensor], features: Features, task: Task) -> Tensor:
    """Answers of K heads, averaged over views: [K, n, C] on the CPU; `outputs` maps tokens [b, N, D] to [K, b, C]."""
    return torch.cat([answers for _, answers in _answers(outputs, features, task)], 1)


def predict_attentive(head: AttentiveHead, features: Features, probabilities: bool = True) -> Tensor:
    """Answers of one trained head: class probabilities [n, C], or the value [n, 1], averaged over views."""
    task = Task(head.linear.out_features if probabilities else 0)
    return predict(lambda tokens: head(tokens.float())[None], features, task)[0]


@torch.no_grad()
def scale_outputs(head: AttentiveHead, task: Task) -> AttentiveHead:
    """Rescale a head trained on standardised values so that it outputs the values themselves."""
    if not task.classes:
        head.linear.weight.mul_(task.spread)
        head.linear.bias.mul_(task.spread).add_(task.centre)
    return head


@torch.no_grad()
def _answers(outputs: Callable[[Tensor], Tensor], features: Features, task: Task) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches: sample indices [b], and the answers of K heads, averaged over views [K, b, C]."""
    views = features.views
    chosen = torch.arange(len(features)).split(max(1, min(256, TOKENS_AT_ONCE // features.shape[0])))
    places = ((index, torch.full_like(index, view)) for index in chosen for view in range(views))
    tokens = features.walk(places)
    for index in chosen:
        yield index, torch.stack([task.answer(outputs(next(tokens))).cpu() for _ in range(views)]).mean(0)


def _resume(file: Path | None, stack: Stack, generator: torch.Generator) -> int:
    """Restore a saved training state, if there is one; returns the epoch to start from."""
    if file is None or not file.is_file():
        return 0
    state: dict[str, Any] = torch.load(file, weights_only=True, map_location=stack.device)
    stack.load_state_dict(state)
    generator.set_state(state["generator"].cpu())
    return int(state["epoch"])


def _save(state: dict[str, Any], file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as part:
        torch.save(state, part)
