"""Whole evaluations on features whose worth is known."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from probes import evaluate as module
from probes.evaluate import HeadsConfig, evaluate, share_table, table
from probes.features import Features
from probes.fit import AttentiveConfig
from probes.results import read_predictions, read_results, write_results

CLASSES = ["a", "b, c", "d"]
SMALL = AttentiveConfig(lrs=(3e-2, 1e-2), weight_decays=(0.01,), epochs=6, batch=32)
ALL = HeadsConfig(names=("linear", "knn", "attentive", "attentive4"), neighbours=5, attentive=SMALL)


def tell(labels: Tensor, worth: float, seed: int = 0, views: int = 2) -> Features:
    """Features that say the label (worth 1), or nothing (worth 0)."""
    generator = torch.Generator().manual_seed(seed)
    said = 4 * worth * torch.eye(16)[labels][:, None, None]
    noise = 0.3 * worth * torch.randn(len(labels), views, 5, 16, generator=generator)
    return Features.from_tokens(1 + said + noise, labels, [f"video {number}" for number in range(len(labels))])


def read_labels(count: int) -> Tensor:
    return torch.arange(count) % 3


def test_perfect_encoder_scores_one_and_a_constant_one_chance() -> None:
    train = {"perfect": tell(read_labels(90), 1), "constant": tell(read_labels(90), 0)}
    test = {"perfect": tell(read_labels(60), 1, 1), "constant": tell(read_labels(60), 0)}
    results = {(one.features, one.head): one for one in evaluate(train, test, CLASSES, ALL)}
    assert len(results) == 8
    for (features, head), result in results.items():
        row = result.as_dict()
        expected = 1.0 if features == "perfect" else 1 / 3
        assert row["top1"] == pytest.approx(expected), (features, head)
        assert row["mean_class"] == pytest.approx(expected), (features, head)
        assert row["samples"] == 60


@pytest.mark.parametrize("folds", [0, 3])
def test_labels_of_the_reported_set_change_neither_choices_nor_heads(folds: int) -> None:
    """All but the scores is bit-equal with the labels of the test set shuffled."""
    known, asked = tell(read_labels(60), 0.2), tell(read_labels(30), 0.2, 1)
    shuffled = Features(asked.source, asked.labels.roll(1), asked.keys, asked.pooled)
    config = replace(ALL, folds=folds, shares=(0.5,), share_seeds=2)
    first, second = (evaluate({"x": known}, {"x": one}, CLASSES, config) for one in (asked, shuffled))
    assert first[0].score != second[0].score, "the shuffled labels are seen where scores are made"
    for mine, theirs in zip(first, second, strict=True):
        assert mine.choice == theirs.choice
        assert torch.equal(mine.answers.said, theirs.answers.said)
        states = [one.trained.state_dict() if one.trained else {} for one in (mine, theirs)]
        assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_few_shot_curves_rise_with_the_labels_and_repeat() -> None:
    known, asked = tell(read_labels(300), 0.08), tell(read_labels(90), 0.08, 1)
    config = HeadsConfig(names=("linear", "knn"), shares=(1.0, 0.01, 0.2), share_seeds=3)
    results = evaluate({"x": known}, {"x": asked}, CLASSES, config)
    for result in results:
        assert [point.share for point in result.shares] == [0.01, 0.2, 1.0]
        assert [point.samples for point in result.shares] == [3, 60, 300]
        means = [point.as_dict()["mean"] for point in result.shares]
        assert means[0] < means[1] <= means[2] + 0.02
        assert result.shares[-1].scores[0] == pytest.approx(result.as_dict()["top1"])
    again = evaluate({"x": known}, {"x": asked}, CLASSES, config)
    assert [one.shares for one in again] == [one.shares for one in results]
    shown = share_table(results)
    assert "x, knn" in shown
    assert "20 %" in shown


def test_every_seed_is_reported_and_the_first_one_is_the_result() -> None:
    config = HeadsConfig(names=("attentive",), attentive=replace(SMALL, lrs=(1e-3,), epochs=1, seeds=3))
    result = evaluate({"x": tell(read_labels(60), 0.1)}, {"x": tell(read_labels(60), 0.1, 1)}, CLASSES, config)[0]
    assert len(result.seeds) == 3
    assert result.seeds[0] == pytest.approx(result.as_dict()["top1"])
    assert "held_out" not in result.choice, "there was nothing to choose"


def test_values_are_regressed_by_every_head() -> None:
    generator = torch.Generator().manual_seed(0)

    def make(count: int) -> Features:
        values = 20 + 5 * torch.randn(count, generator=generator)
        tokens = torch.randn(count, 1, 4, 16, generator=generator) * 0.2 + (values[:, None, None, None] - 20)
        tokens[..., 8:] *= -1
        return Features.from_tokens(tokens, values)

    config = HeadsConfig(names=("linear", "knn", "attentive"), neighbours=3, attentive=replace(SMALL, epochs=40))
    known, asked = make(200), make(80)
    results = evaluate({"x": known}, {"x": asked}, [], config)
    found = {result.head: result.as_dict() for result in results}
    assert found["linear"]["r2"] > 0.95
    assert found["linear"]["mae"] < 1.5
    for head in ("knn", "attentive"):  # by direction alone: the sign of the value
        assert 0.3 < found[head]["r2"] < found["linear"]["r2"]
    assert "linear" in table(results)


def test_attentive_heads_leave_single_tokens_alone_and_fit_any_width() -> None:
    labels = read_labels(30)
    pixels = Features.from_tokens(torch.randn(30, 1, 2, 40), labels)
    pixels.clip_tokens = 1  # of each of two segments
    narrow = Features.from_tokens(torch.randn(30, 1, 4, 10), labels)
    config = HeadsConfig(names=("knn", "attentive"), attentive=replace(SMALL, heads=4, epochs=1))
    sets = {"pixels": pixels, "narrow": narrow}
    results = evaluate(sets, sets, CLASSES, config)
    assert [(one.features, one.head) for one in results] == [
        ("pixels", "knn"), ("narrow", "knn"), ("narrow", "attentive"),
    ]  # fmt: skip
    assert results[2].trained is not None
    assert results[2].trained.heads == 2, "as many of the 4 heads as divide the width"


def test_stopped_evaluation_goes_on_with_what_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = {"x": tell(read_labels(60), 0.1)}, {"x": tell(read_labels(30), 0.1, 1)}
    expected = evaluate(train, test, CLASSES, ALL)
    fit, done = module.fit, []

    def stop(head: str, *arguments: object) -> object:
        if head == "attentive4" and "attentive4" not in done:
            done.append(head)
            raise KeyboardInterrupt
        done.append(head)
        return fit(head, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "fit", stop)
    with pytest.raises(KeyboardInterrupt):
        evaluate(train, test, CLASSES, ALL, tmp_path)
    resumed = evaluate(train, test, CLASSES, ALL, tmp_path)
    assert done == ["linear", "knn", "attentive", "attentive4", "attentive4"], "what was finished is not done again"
    for mine, theirs in zip(resumed, expected, strict=True):
        assert mine.as_dict() == theirs.as_dict()
        states = [one.trained.state_dict() if one.trained else {} for one in (mine, theirs)]
        assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_unfinished_work_of_other_features_is_not_taken_over(tmp_path: Path) -> None:
    config = HeadsConfig(names=("knn",))
    labels = read_labels(30)
    first, second = (
        evaluate({"x": tell(labels, worth)}, {"x": tell(labels, worth)}, CLASSES, config, tmp_path)[0].as_dict()["top1"]
        for worth in (0, 1)
    )
    assert (first, second) == (pytest.approx(1 / 3), 1.0)


def test_unfinished_work_is_that_of_the_same_tokens_not_of_the_same_means(tmp_path: Path) -> None:
    known = tell(read_labels(12), 1)
    folders = set()
    for description, views in (("layers 2", 2), ("layers 0, 2", 2), ("layers 2", 3)):
        known.description, known.views = description, views
        folders.add(module.FinishedHeads.open(tmp_path, ALL, {"x": known}, {"x": known}).folder)
    assert len(folders) == 3


def test_answers_that_are_not_finite_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    features = {"x": tell(read_labels(12), 1)}
    fitted = module.Fitted(torch.full((12, 3), float("nan")), {})
    monkeypatch.setattr(module, "fit", lambda *arguments: fitted)
    with pytest.raises(ValueError, match=r"linear on x gave answers that are not finite: lower heads.attentive.lrs"):
        evaluate(features, features, CLASSES, HeadsConfig(names=("linear",)))


def test_a_sample_is_one_neighbour_however_many_views_it_has() -> None:
    views = torch.eye(8)[:2, None, None].expand(2, 3, 1, 8)
    known = Features.from_tokens(views, torch.tensor([0, 1]))
    fitted = module.fit("knn", known, known, 2, HeadsConfig(neighbours=2), 0)
    assert (fitted.probabilities > 0).all(), "two neighbours are two samples"


@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        (torch.tensor([0, 1, -1]), CLASSES, "1 samples of the training set have no label"),
        (torch.tensor([0, 1, 2]), [], "must name its classes"),
        (torch.tensor([0.0, 1.0, float("nan")]), [], "1 samples of the training set have no label"),
        (torch.tensor([0.0, 1.0, 2.0]), CLASSES, "it must have no classes"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels: Tensor, classes: Sequence[str], message: str) -> None:
    features = {"x": Features.from_tokens(torch.randn(3, 1, 2, 8), labels)}
    with pytest.raises(ValueError, match=message):
        evaluate(features, features, classes, HeadsConfig())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("held_out", 0.0),
        ("folds", 1),
        ("shares", (0.0,)),
        ("shares", (0.1, 0.1)),
        ("share_seeds", 0),
        ("names", ()),
        ("names", ("knn", "knn")),
    ],
)
def test_impossible_settings_are_refused(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"heads.{key}"):
        HeadsConfig(**{key: value})  # type: ignore[arg-type]


def test_results_are_read_back_with_every_sample_once(tmp_path: Path) -> None:
    train, test = {"x": tell(read_labels(60), 0.1)}, {"x": tell(read_labels(30), 0.1, 1)}
    test["x"].missing = {"no frames": ["video 99"]}
    results = evaluate(train, test, CLASSES, replace(ALL, names=("linear", "knn")))
    document = read_results(write_results(tmp_path, results, CLASSES, {"encoder": "runs/a"}).parent)
    assert document.task == "classification"
    assert document.missing == {"no frames": ["video 99"]}
    assert [row["missing"] for row in document.rows] == [1, 1]
    assert json.loads(json.dumps(results[0].as_dict())) == document.rows[0]
    predictions = read_predictions(document)
    for result, row in zip(results, document.rows, strict=True):
        found = predictions["x", result.head]
        assert found.keys == test["x"].keys
        assert found.labels == [CLASSES[label] for label in test["x"].labels.tolist()]
        hits = [truth == said for truth, said in zip(found.labels, found.predicted, strict=True)]
        assert sum(hits) / 30 == pytest.approx(row["top1"])
        assert [rank == 0 for rank in found.ranks] == hits
        truth = result.answers.said.gather(1, test["x"].labels[:, None])[:, 0]
        assert found.probabilities == pytest.approx(truth.tolist(), abs=1e-5)


def test_results_that_are_something_else_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_results(tmp_path)
    (tmp_path / "results.json").write_text('{"format": "vjepa-probe-1"}')
    with pytest.raises(ValueError, match="with format 'vjepa-probe-2', got 'vjepa-probe-1'; probe again"):
        read_results(tmp_path)
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        read_results(tmp_path)
    labels = read_labels(12)
    results = evaluate({"x": tell(labels, 1)}, {"x": tell(labels, 1)}, CLASSES, HeadsConfig(names=("knn",)))
    document = read_results(write_results(tmp_path, results, CLASSES, {}))
    table = tmp_path / "predictions.csv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(ValueError, match="each of the 12 samples of x, knn once, got 11 lines"):
        read_predictions(document)
    table.unlink()
    with pytest.raises(FileNotFoundError, match=r"predictions.csv is missing"):
        read_predictions(document)
