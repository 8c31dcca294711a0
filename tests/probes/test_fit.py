"""Sweeps of attentive heads: each is what it would be alone, and the test set is never seen."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from probes import fit
from probes import stack as stacks
from probes.features import Features
from probes.fit import AttentiveConfig, Recipe, fit_attentive, predict, predict_attentive, train_heads
from probes.stack import Candidate
from probes.task import Task, choose_best


def make_features(samples: int = 40, views: int = 1, tokens: int = 6, seed: int = 0) -> Features:
    generator = torch.Generator().manual_seed(seed)
    return Features.from_tokens(torch.randn(samples, views, tokens, 16, generator=generator), torch.arange(samples) % 4)


@pytest.mark.parametrize("depth", [1, 4])
def test_many_heads_at_once_are_what_each_is_alone(depth: int) -> None:
    """Not bit by bit: a product of another shape may add in another order, and Adam hands it on; hence 1e-5."""
    features = make_features()
    recipe = Recipe(Task(4), AttentiveConfig(epochs=3, batch=16), depth)
    candidates = [Candidate(lr, decay, seed) for lr in (1e-2, 1e-3) for decay in (0.01, 0.5) for seed in (0, 1)]
    together = train_heads(features, candidates, recipe)
    for number, candidate in enumerate(candidates):
        alone = train_heads(features, [candidate], recipe)
        torch.testing.assert_close(together.weights[number], alone.weights[0], atol=1e-5, rtol=1e-4)
    assert not torch.equal(together.weights[0], together.weights[1]), "seeds differ"
    assert not torch.equal(together.weights[0], together.weights[4]), "learning rates differ"


def test_training_is_adamw_with_cosine_on_the_plain_module() -> None:
    """The matrix of heads against the module, autograd and torch's optimiser written out."""
    features, config = make_features(), AttentiveConfig(epochs=2, batch=16)
    stack = train_heads(features, [Candidate(1e-2, 0.1, 3)], Recipe(Task(4), config, seed=5))
    torch.manual_seed(3)
    head = stacks.AttentiveHead(16, 1, 4)
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-2, weight_decay=0.1)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 2 * 3)
    generator = torch.Generator().manual_seed(5)
    for _ in range(2):
        for chosen in torch.randperm(40, generator=generator).split(16):
            logits = head(features.pick(chosen, torch.zeros_like(chosen)).float())
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(logits, features.labels[chosen]).backward()
            optimizer.step()
            cosine.step()
    for mine, theirs in zip(stack.head(0).parameters(), head.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


def test_parts_of_a_batch_of_deep_heads_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe(Task(4), AttentiveConfig(epochs=1, batch=16), depth=4)
    whole = train_heads(make_features(), [Candidate(1e-2, 0.0, 0)], recipe)
    monkeypatch.setattr(stacks, "TOKENS_AT_ONCE", 6 * 5)  # five samples of six tokens
    parts = train_heads(make_features(), [Candidate(1e-2, 0.0, 0)], recipe)
    torch.testing.assert_close(whole.weights, parts.weights, atol=1e-5, rtol=1e-4)


class Counting:
    """Tokens that say how often they were read, and which views."""

    def __init__(self, features: Features) -> None:
        self.inner, self.shape = features.source, features.shape
        self.rows = 0
        self.views: list[list[int]] = []

    def read(self, rows: Tensor, views: Tensor) -> Tensor:
        self.rows += len(rows)
        self.views.append(views.unique().tolist())
        return self.inner.read(rows, views)

    def walk(self, places: Iterable[tuple[Tensor, Tensor]]) -> Iterator[Tensor]:
        return (self.read(rows, views) for rows, views in places)


@pytest.mark.parametrize("lrs", [(1e-3,), (1e-2, 3e-3, 1e-3, 3e-4, 1e-4)])
def test_a_sweep_reads_no_more_than_one_head(lrs: tuple[float, ...]) -> None:
    features = make_features(views=3)
    counting = Counting(features)
    counted = Features(counting, features.labels, features.keys, features.pooled)
    recipe = Recipe(Task(4), AttentiveConfig(epochs=4, batch=64))
    train_heads(counted, [Candidate(lr, 0.01, 0) for lr in lrs], recipe)
    assert counting.rows == 4 * 40
    assert counting.views == [[0], [1], [2], [0]], "epoch e takes view e % V"


@pytest.mark.parametrize("depth", [1, 4])
def test_labels_of_the_reported_set_change_neither_choice_nor_head(depth: int) -> None:
    known, asked = make_features(), make_features(24, seed=1)
    shuffled = Features.from_tokens(
        asked.source.read(torch.arange(24), torch.zeros(24).long())[:, None], 3 - asked.labels
    )
    recipe = Recipe(Task(4), AttentiveConfig(lrs=(1e-2, 1e-4), epochs=2, seeds=2), depth, folds=2)
    first, second = (fit_attentive(known, test, recipe) for test in (asked, shuffled))
    assert first.choice == second.choice
    assert torch.equal(first.probabilities, second.probabilities)
    assert first.head is not None
    assert second.head is not None
    for mine, theirs in zip(first.head.parameters(), second.head.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_choice_is_the_best_on_held_out_samples() -> None:
    """A learning rate of zero learns nothing: its heads say the same of everybody."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(80) % 4
    tokens = torch.randn(80, 1, 3, 16, generator=generator) + 3 * torch.eye(16)[labels][:, None, None]
    known = Features.from_tokens(tokens, labels)
    for folds in (0, 4):
        recipe = Recipe(Task(4), AttentiveConfig(lrs=(0.0, 1e-2), weight_decays=(0.01,), epochs=10), folds=folds)
        fitted = fit_attentive(known, known, recipe)
        assert fitted.choice["lr"] == 1e-2
        assert fitted.choice["held_out"] > 0.8
        assert (fitted.probabilities.argmax(1) == labels).float().mean() > 0.9


def test_equally_good_candidates_are_told_apart_by_their_loss_and_diverged_ones_are_last() -> None:
    assert choose_best(torch.tensor([3.0, 3.0, 2.0]), torch.tensor([1.0, 0.5, 0.1])) == 1
    assert choose_best(torch.tensor([float("nan"), 3.0]), torch.tensor([0.0, float("nan")])) == 1


@pytest.mark.parametrize("labels", [torch.zeros(6, dtype=torch.long), torch.zeros(6)])
def test_answers_that_are_not_finite_are_worse_than_wrong_ones(labels: Tensor) -> None:
    """The first of the classes is what argmax finds among numbers that are none, and the truth here."""
    task = Task.of(labels, 3)
    wrong, diverged = torch.tensor([0.0, 0.0, 1.0]).expand(6, 3) + 9, torch.full((6, 3), float("nan"))
    good, bad = task.grade(torch.stack([diverged, wrong])[..., : task.outputs], labels)
    assert choose_best(good.sum(1), bad.sum(1)) == 1


def test_views_are_averaged_as_probabilities() -> None:
    torch.manual_seed(0)
    head = stacks.AttentiveHead(16, 2, 3)
    tokens = torch.randn(5, 2, 4, 16).bfloat16()
    labels = torch.zeros(5, dtype=torch.long)
    apart = [predict_attentive(head, Features.from_tokens(tokens[:, view : view + 1], labels)) for view in range(2)]
    both = predict_attentive(head, Features.from_tokens(tokens, labels))
    torch.testing.assert_close(both, (apart[0] + apart[1]) / 2)


@pytest.mark.parametrize("loss", ["l1", "l2"])
def test_values_are_learned_in_their_own_unit_and_the_head_says_them_by_itself(loss: str) -> None:
    generator = torch.Generator().manual_seed(0)
    values = 500 + 100 * torch.randn(200, generator=generator)
    tokens = 0.3 * torch.randn(200, 1, 4, 16, generator=generator)
    tokens[:, 0, 2, 0] += 2 + (values - 500) / 100
    features = Features.from_tokens(tokens, values)
    config = AttentiveConfig(lrs=(1e-2,), weight_decays=(0.01,), epochs=30, loss=loss)  # type: ignore[arg-type]
    fitted = fit_attentive(features, features, Recipe(Task.of(values, 0, loss), config))  # type: ignore[arg-type]
    assert (fitted.probabilities[:, 0] - values).abs().mean() < 50, "saying the mean is off by 80"
    assert isinstance(fitted.head, stacks.AttentiveHead)
    said = predict_attentive(fitted.head, features, probabilities=False)
    torch.testing.assert_close(said, fitted.probabilities, atol=0.05, rtol=1e-4)


@pytest.mark.parametrize("depth", [1, 4])
def test_stopped_training_goes_on_where_it_was(depth: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "SAVE_EVERY", 0.0)
    features = make_features()
    candidates = [Candidate(1e-2, 0.1, 0), Candidate(1e-3, 0.1, 1)]
    recipe = Recipe(Task(4), AttentiveConfig(epochs=4, batch=16), depth, place=tmp_path)
    whole = train_heads(features, candidates, Recipe(Task(4), recipe.config, depth))
    step, steps = stacks.Stack.step, 0

    def stop(self: stacks.Stack, *arguments: object) -> None:
        nonlocal steps
        steps += 1
        if steps == 8:  # in the third of four epochs of three steps
            raise KeyboardInterrupt
        step(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(stacks.Stack, "step", stop)
    with pytest.raises(KeyboardInterrupt):
        train_heads(features, candidates, recipe, "sweep")
    monkeypatch.setattr(stacks.Stack, "step", step)
    resumed = train_heads(features, candidates, recipe, "sweep")
    assert torch.equal(resumed.weights, whole.weights)
    answers = [predict(one.answer, features, Task(4)) for one in (whole, resumed)]
    assert torch.equal(*answers)


def test_a_state_is_not_written_more_often_than_every_two_minutes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, written = [0.0], []
    monkeypatch.setattr(fit.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(fit, "_save", lambda state, file: written.append(state["epoch"]))
    step = stacks.Stack.step

    def take_half_a_minute(self: stacks.Stack, *arguments: object) -> None:
        now[0] += 30
        step(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(stacks.Stack, "step", take_half_a_minute)
    recipe = Recipe(Task(4), AttentiveConfig(epochs=6, batch=40), place=tmp_path)
    train_heads(make_features(), [Candidate(1e-2, 0.1, 0)], recipe)
    assert written == [4]
