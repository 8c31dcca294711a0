"""Scores on answers whose truth is known."""

import pytest
import torch

from probes.metrics import score, wilson


def test_perfect_answers_score_one_and_constant_ones_chance() -> None:
    labels = torch.arange(40) % 4
    perfect = torch.nn.functional.one_hot(labels, 4).float()
    constant = torch.zeros(40, 4)
    constant[:, 0] = 1
    assert score(perfect, labels).top1 == 1.0
    assert score(constant, labels).top1 == 0.25
    assert score(constant, labels).mean_class == 0.25


def test_mean_class_weighs_classes_not_samples() -> None:
    labels = torch.tensor([0] * 9 + [1])
    always_first = torch.tensor([[1.0, 0.0]]).repeat(10, 1)
    found = score(always_first, labels)
    assert found.top1 == pytest.approx(0.9)
    assert found.mean_class == pytest.approx(0.5)
    assert found.confusion == [[9, 0], [1, 0]]


def test_top5_counts_the_five_best() -> None:
    probabilities = torch.arange(10.0).repeat(10, 1)  # classes 5 to 9 are the best five
    assert score(probabilities, torch.arange(10)).top5 == 0.5


def test_wilson_interval_equals_the_formula_and_stays_inside() -> None:
    low, high = wilson(50, 100)
    assert (low, high) == pytest.approx((0.4038, 0.5962), abs=1e-4)  # 50 of 100 at 95 %
    assert wilson(0, 10)[0] == 0.0
    assert wilson(10, 10)[1] == pytest.approx(1.0)


def test_impossible_sets_are_refused() -> None:
    with pytest.raises(ValueError, match="empty set"):
        score(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))
    with pytest.raises(ValueError, match=r"labels must lie in 0 ... 2, got -1"):
        score(torch.zeros(2, 3), torch.tensor([-1, 0]))
