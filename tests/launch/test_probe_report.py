"""The page and the curves that a probe leaves, made from its files."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data.loading.loader import DataConfig, EvalLoader
from launch.reports.probe_page import clips_of, write_probe_report, write_scalars
from probes.evaluate import HeadsConfig, Result, evaluate
from probes.features import Features
from probes.results import write_results

CONFIG = {"encoder": "runs/<a>", "test": "shards/test", "heads": {"held_out": 0.2}}


def measure(classes: int, labels: torch.Tensor, names: tuple[str, ...] = ("linear", "knn")) -> list[Result]:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(len(labels), 1, 4, 16, generator=generator) + labels[:, None, None, None]
    features = Features.from_tokens(tokens, labels, [f"video {number}" for number in range(len(labels))])
    features.missing = {"no frames": ["video <99>"]}
    config = HeadsConfig(names=names, neighbours=3, shares=(0.5, 1.0), share_seeds=2)  # type: ignore[arg-type]
    sets = {"encoder": features, "random encoder": features}
    return evaluate(sets, sets, [f"class {number}" for number in range(classes)], config)


def test_page_stands_alone_and_shows_everything(tmp_path: Path) -> None:
    results = measure(3, torch.arange(30) % 3)
    write_results(tmp_path, results, [f"class {number}" for number in range(3)], CONFIG)
    asked: list[str] = []

    def show(keys: Sequence[str]) -> dict[str, torch.Tensor]:
        asked.extend(keys)
        return {key: torch.zeros(4, 16, 16, 3, dtype=torch.uint8) for key in keys[1:]}  # one cannot be read

    page = write_probe_report(tmp_path, show).read_text()
    assert "http" not in page, "the report must stand alone"
    assert len(asked) == 12, "the six best and the six worst"
    assert page.count("<figure>") == 12
    assert page.count("<img ") == 2 + 11, "few-shot curves, confusion matrix, and what could be shown"
    for words in ("class 2", "With fewer labels", "Confusion matrix", "Per-class accuracy", "Worst", "Best"):
        assert words in page
    assert "video &lt;99&gt;" in page, "what is missing is named, and names are no HTML"
    assert "<a>" not in page


def test_page_of_values_has_no_classes(tmp_path: Path) -> None:
    results = measure(0, torch.randn(30))
    write_results(tmp_path, results, [], CONFIG)
    page = write_probe_report(tmp_path).read_text()
    assert "Mean absolute error on the whole test set" in page
    assert "Confusion matrix" not in page
    assert page.count("<img ") == 2, "curves, and values against the truth"
    assert "off by" in page


def test_page_of_many_classes_lists_the_worst_and_folds_the_rest(tmp_path: Path) -> None:
    labels = torch.arange(120) % 60
    write_results(tmp_path, measure(60, labels, ("knn",)), [f"class {number}" for number in range(60)], CONFIG)
    page = write_probe_report(tmp_path).read_text()
    assert "all 60" in page


def test_scores_are_tensorboard_scalars(tmp_path: Path) -> None:
    results = measure(3, torch.arange(30) % 3, ("knn",))
    write_scalars(tmp_path, results)
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert board.Scalars("probe/encoder/knn/top1")[0].value == pytest.approx(results[0].as_dict()["top1"])
    assert [point.step for point in board.Scalars("shares/encoder/knn")] == [500, 1000]


def test_clips_of_examples_are_found_by_their_keys(shards: Path) -> None:
    loader = EvalLoader(DataConfig(path=str(shards), frames=4, stride=1, crop=32, workers=0), 4)
    batches = list(loader)
    key, clip = batches[2].keys[1], batches[2].clips[1, 0]
    found = clips_of(loader)([key, "absent"])
    assert list(found) == [key]
    assert torch.equal(found[key], clip)
