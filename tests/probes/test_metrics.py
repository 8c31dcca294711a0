"""Scores on answers whose truth is known."""

import pytest
import torch
from scipy import stats
from sklearn import metrics as reference

from probes.metrics import bootstrap_accuracy, score, score_values, wilson


def make_answers(samples: int = 500, classes: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (samples,), generator=generator).clamp(max=classes - 2)  # one class has no sample
    logits = torch.randn(samples, classes, generator=generator)
    logits[torch.arange(samples), labels] += 1.5
    return logits.softmax(1), labels


def test_perfect_answers_score_one_and_constant_ones_chance() -> None:
    labels = torch.arange(40) % 4
    perfect = torch.nn.functional.one_hot(labels, 4).float()
    constant = torch.zeros(40, 4)
    constant[:, 0] = 1
    assert score(perfect, labels).top1 == 1.0
    assert score(perfect, labels).bootstrap["mean_class"] == (1.0, 1.0)
    assert score(constant, labels).top1 == 0.25
    assert score(constant, labels).mean_class == 0.25


def test_scores_agree_with_scikit_learn() -> None:
    probabilities, labels = make_answers()
    found, predicted = score(probabilities, labels), probabilities.argmax(1)
    assert found.top1 == pytest.approx(reference.accuracy_score(labels, predicted))
    assert found.top5 == pytest.approx(
        reference.top_k_accuracy_score(labels, probabilities, k=5, labels=range(8)), abs=1e-6
    )
    assert found.mean_class == pytest.approx(
        reference.recall_score(labels, predicted, labels=range(7), average="macro")
    )
    assert found.confusion == reference.confusion_matrix(labels, predicted, labels=range(8)).tolist()


def test_per_class_rows_are_those_of_the_classes_that_have_samples() -> None:
    rows = score(*make_answers()).per_class()
    assert [row["class"] for row in rows] == list(range(7))
    assert sum(row["samples"] for row in rows) == 500
    assert all(row["low"] < row["accuracy"] < row["high"] for row in rows)


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


@pytest.mark.parametrize(("hits", "samples"), [(50, 100), (0, 10), (10, 10), (3, 7), (19_000, 20_000)])
def test_wilson_interval_is_scipys(hits: int, samples: int) -> None:
    expected = stats.binomtest(hits, samples).proportion_ci(0.95, "wilson")
    assert wilson(hits, samples) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_bootstrap_is_that_of_drawing_the_samples_again() -> None:
    """Against scipy, which draws indices; both are random, so within some of their own noise."""
    probabilities, labels = make_answers()
    hit = (probabilities.argmax(1) == labels).double().numpy()
    expected = stats.bootstrap((hit,), lambda drawn, axis: drawn.mean(axis), method="percentile", rng=0)
    found = score(probabilities, labels)
    assert found.bootstrap["top1"] == pytest.approx(expected.confidence_interval, abs=6e-3)

    def mean_class(answers: torch.Tensor, truth: torch.Tensor) -> float:
        return float(reference.recall_score(truth, answers, labels=sorted(set(truth.tolist())), average="macro"))

    generator = torch.Generator().manual_seed(1)
    drawn = [torch.randint(500, (500,), generator=generator) for _ in range(400)]
    means = torch.tensor([mean_class(probabilities.argmax(1)[index], labels[index]) for index in drawn])
    assert found.bootstrap["mean_class"] == pytest.approx(
        means.double().quantile(torch.tensor([0.025, 0.975]).double()).tolist(), abs=1e-2
    )


def test_bootstrap_covers_the_truth_as_often_as_it_says() -> None:
    """150 sets of 300 samples from a head whose accuracies are known: 95 % of the intervals hold them, give or take."""
    generator = torch.Generator().manual_seed(0)
    right = torch.tensor([0.4, 0.6, 0.9])  # by class; top-5 is right in a half of the others
    covered = dict.fromkeys(("top1", "top5", "mean_class"), 0)
    for trial in range(150):
        labels = torch.randint(3, (300,), generator=generator)
        hit = torch.rand(300, generator=generator) < right[labels]
        among = hit | (torch.rand(300, generator=generator) < 0.5)
        intervals = bootstrap_accuracy(labels, hit, among, seed=trial, draws=500)
        truth = float(right.mean())
        for name, value in {"top1": truth, "top5": (1 + truth) / 2, "mean_class": truth}.items():
            covered[name] += intervals[name][0] <= value <= intervals[name][1]
    for name, count in covered.items():
        assert 133 <= count <= 149, f"{name} covered {count} of 150"  # 142.5 expected, standard deviation 2.7


def test_bootstrap_repeats_itself() -> None:
    probabilities, labels = make_answers()
    assert score(probabilities, labels, seed=1) == score(probabilities, labels, seed=1)
    assert score(probabilities, labels, seed=1) != score(probabilities, labels, seed=2)


def test_values_agree_with_scikit_learn_and_their_intervals_hold_them() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = 5 + 2 * torch.randn(300, generator=generator)
    said = truth + torch.randn(300, generator=generator)
    found = score_values(said, truth)
    assert found.mae == pytest.approx(reference.mean_absolute_error(truth, said))
    assert found.r2 == pytest.approx(reference.r2_score(truth, said), abs=1e-5)
    expected = stats.bootstrap(
        ((said - truth).abs().numpy(),), lambda d, axis: d.mean(axis), method="percentile", rng=0
    )
    assert found.bootstrap["mae"] == pytest.approx(expected.confidence_interval, abs=8e-3)
    assert found.bootstrap["r2"][0] < found.r2 < found.bootstrap["r2"][1]


def test_saying_the_mean_explains_nothing() -> None:
    truth = torch.randn(50)
    assert score_values(truth.mean().expand(50), truth).r2 == pytest.approx(0, abs=1e-6)


def test_impossible_sets_are_refused() -> None:
    with pytest.raises(ValueError, match="empty set"):
        score(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))
    with pytest.raises(ValueError, match="empty set"):
        score_values(torch.zeros(0), torch.zeros(0))
    with pytest.raises(ValueError, match=r"labels must lie in 0 ... 2, got -1"):
        score(torch.zeros(2, 3), torch.tensor([-1, 0]))
