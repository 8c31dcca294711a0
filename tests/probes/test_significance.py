"""Paired tests against scipy, and against chance."""

import numpy as np
import pytest
from scipy import stats

from probes.significance import compare_errors, compare_hits, correct_holm, mcnemar


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (0, 1), (3, 12), (12, 3), (7, 7), (400, 480), (9000, 9400)])
def test_mcnemar_is_the_exact_binomial_test(lost: int, won: int) -> None:
    expected = stats.binomtest(lost, lost + won).pvalue if lost + won else 1.0
    assert mcnemar(lost, won) == pytest.approx(expected, rel=1e-6)


def test_difference_of_hits_has_its_value_and_a_bootstrap_interval() -> None:
    random = np.random.default_rng(0)
    first = random.random(800) < 0.6
    second = np.where(random.random(800) < 0.2, random.random(800) < 0.9, first)
    found = compare_hits(first, second)
    assert found.value == pytest.approx(second.mean() - first.mean())
    difference = second.astype(float) - first
    expected = stats.bootstrap((difference,), lambda d, axis: d.mean(axis), method="percentile", rng=0)
    assert found.interval == pytest.approx(expected.confidence_interval, abs=4e-3)
    assert found.p < 0.01
    assert compare_hits(second, first).value == -found.value


def test_errors_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="1 of 3 errors of the second head are not finite"):
        compare_errors(np.ones(3), np.array([1.0, np.nan, 0.0]))


def test_difference_of_errors_has_its_value_and_a_permutation_test() -> None:
    random = np.random.default_rng(0)
    first, second = random.normal(size=120), 0.8 * random.normal(size=120)
    found = compare_errors(first, second)
    assert found.value == pytest.approx(np.abs(second).mean() - np.abs(first).mean())
    assert found.interval[0] < found.value < found.interval[1]
    difference = np.abs(second) - np.abs(first)
    expected = stats.permutation_test(
        (difference,), np.mean, permutation_type="samples", n_resamples=9999, rng=1, vectorized=False
    )
    assert found.p == pytest.approx(expected.pvalue, abs=0.015)
    assert compare_errors(first, first).p == 1.0


def test_equal_heads_are_seldom_told_apart() -> None:
    random = np.random.default_rng(0)
    values = [compare_hits(random.random(300) < 0.7, random.random(300) < 0.7).p for _ in range(200)]
    assert sum(value < 0.05 for value in values) <= 16, "10 are expected at most"


def test_holm_orders_multiplies_and_never_falls() -> None:
    assert correct_holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert correct_holm([0.5, 0.9]) == [1.0, 1.0]
    assert correct_holm([0.02]) == [0.02]
