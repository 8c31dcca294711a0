"""Parts of a training set: disjoint, whole, fair to every class."""

import math

import pytest
import torch
from scipy import stats

from probes.choose import draw_share, hold_out, mean_interval, split_folds, split_held_out

LABELS = torch.tensor([0] * 50 + [1] * 10 + [2])


def test_held_out_part_is_stratified_and_disjoint() -> None:
    kept, held = split_held_out(LABELS, 0.2, seed=0)
    assert sorted([*kept.tolist(), *held.tolist()]) == list(range(61))
    assert LABELS[held].bincount(minlength=3).tolist() == [10, 2, 0]


def test_every_class_with_several_samples_stays_in_training() -> None:
    kept, held = split_held_out(LABELS, 0.97, seed=0)
    assert LABELS[kept].unique().tolist() == [0, 1, 2]
    assert LABELS[held].bincount().tolist() == [48, 9]


def test_folds_hold_every_sample_out_once() -> None:
    pairs = split_folds(LABELS, 5, seed=0)
    assert sorted(int(number) for _, held in pairs for number in held) == list(range(61))
    for kept, held in pairs:
        assert sorted([*kept.tolist(), *held.tolist()]) == list(range(61))
        assert LABELS[held].bincount(minlength=2)[:2].tolist() == [10, 2]


def test_where_no_class_has_two_samples_there_is_nothing_to_choose_on() -> None:
    assert hold_out(torch.arange(5), 0.2, 0, seed=0) == []
    assert len(hold_out(torch.arange(5), 0.2, 5, seed=0)) == 5


def test_values_are_held_out_as_one_class() -> None:
    _, held = split_held_out(torch.randn(50), 0.2, seed=0)
    assert len(held) == 10


def test_shares_keep_the_classes_contain_each_other_and_differ_by_seed() -> None:
    drawn = {share: draw_share(LABELS, share, seed=3) for share in (0.01, 0.1, 0.5, 1.0)}
    assert LABELS[drawn[0.01]].bincount().tolist() == [1, 1, 1], "at least one of each"
    assert LABELS[drawn[0.1]].bincount().tolist() == [5, 1, 1]
    assert drawn[1.0].tolist() == list(range(61))
    assert set(drawn[0.01].tolist()) < set(drawn[0.1].tolist()) < set(drawn[0.5].tolist())
    assert drawn[0.5].tolist() != draw_share(LABELS, 0.5, seed=4).tolist()


@pytest.mark.parametrize("count", [2, 3, 5, 16, 17, 40])
def test_interval_of_a_mean_is_students(count: int) -> None:
    values = torch.rand(count, generator=torch.Generator().manual_seed(0), dtype=torch.float64).tolist()
    mean, low, high = mean_interval(values)
    expected = stats.t.interval(0.95, count - 1, loc=mean, scale=stats.sem(values))
    assert (low, high) == pytest.approx((max(0, expected[0]), expected[1]), rel=5e-3)
    assert mean_interval(values, most=mean)[2] == mean, "no higher than a score can be"
    assert math.isnan(mean_interval(values[:1])[1])
