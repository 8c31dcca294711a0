"""Several data sets: gains over a random encoder, the worst of them, and what is chosen when one set is left out."""

import json
import math
from pathlib import Path

import pytest
import yaml

from launch.__main__ import main
from launch.config import load_config, to_yaml
from launch.studies.compare_objectives import Choice, StudyConfig, choose_steps
from launch.studies.data_sets import DataSet
from launch.studies.objective_table import Row
from launch.studies.over_sets import Gain, find_gains, leave_one_out, render_sets, worst
from launch.training.config import TrainConfig


def rows(encoder: dict[str, list[float]], floor: float = 0.1) -> list[Row]:
    """The rows of one set: choices with one head, and the random encoder."""
    found = [Row(name, f"about {name}", 5, top1={"linear": values}) for name, values in encoder.items()]
    return [*found, Row("random encoder", "baseline", top1={"linear": [floor] * 3})]


TABLES = {
    "a": rows({"steady": [0.3, 0.32, 0.34], "wild": [0.9, 0.9, 0.9]}),
    "b": rows({"steady": [0.2, 0.22, 0.24], "wild": [0.0, 0.1, 0.05]}),
    "c": rows({"steady": [0.25, 0.25, 0.25], "wild": [0.8, 0.8, 0.8]}),
}


def test_a_gain_is_paired_by_seed_and_its_interval_is_student_s() -> None:
    gain = find_gains(TABLES)["steady"]["a"]["linear"]
    assert gain.values == pytest.approx((20, 22, 24))
    assert gain.mean == pytest.approx(22)
    assert gain.half_width == pytest.approx(4.303 * 2 / math.sqrt(3), rel=1e-3)
    assert gain.is_clear
    assert not Gain((1.0, -1.0, 3.0)).is_clear
    assert not Gain((5.0,)).is_clear, "one seed shows no spread"


def test_a_recipe_is_as_good_as_its_worst_gain() -> None:
    gains = find_gains(TABLES)
    assert worst(gains["wild"], ["a", "b", "c"]) == (pytest.approx(-5), "b, linear")
    assert worst(gains["steady"], ["a", "b", "c"]) == (pytest.approx(12), "b, linear")


def test_the_choice_for_a_set_left_out_is_made_on_the_others() -> None:
    found = {left: (chosen, value) for left, chosen, value, _ in leave_one_out(find_gains(TABLES), list(TABLES))}
    assert found["b"] == ("wild", pytest.approx(-5)), "on the others wild looks better"
    assert found["a"] == ("steady", pytest.approx(22))


def test_a_run_that_diverged_is_the_worst(tmp_path: Path) -> None:
    tables = {"a": [*TABLES["a"], Row("broken", "about broken", 5, diverged=1)]}
    assert worst(find_gains(tables)["broken"], ["a"]) == (-math.inf, "a: no result")
    assert "| broken | -inf | a: no result |" in render_sets(tables)


def test_a_set_is_either_folders_or_generated() -> None:
    assert DataSet("x", "y").shards(Path()) == ("x", "y")
    for wrong in ({}, {"train": "x"}, {"train": "x", "test": "y", "kind": "sprites"}):
        with pytest.raises(ValueError, match="give either kind, or train and test"):
            DataSet(**wrong)


def test_a_share_of_the_budget_is_a_shorter_run(tmp_path: Path) -> None:
    choices = {
        "whole": Choice(),
        "half": Choice(budget_share=0.5),
        "salt": Choice(teacher={"teacher": {"source": "pixels"}}),
    }
    steps = choose_steps(StudyConfig(steps=100, choices=choices), tmp_path)
    assert steps == {"whole": {"run": 100}, "half": {"run": 50}, "salt": {"run": 60, "teacher": 40}}


def test_every_choice_is_probed_on_every_set(
    words: list[str], shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = load_config(
        TrainConfig, None, [*words, "run.progress=false", "health.matrix_tflops=1", "run.precision=auto"]
    )
    (tmp_path / "base.yaml").write_text(to_yaml(base))
    (tmp_path / "probe.yaml").write_text("data: {stride: 1, workers: 0}\nheads: {names: [knn]}\n")
    study = {
        "pretrain": str(tmp_path / "base.yaml"), "probe": str(tmp_path / "probe.yaml"), "steps": 2, "seeds": 2,
        "output": str(tmp_path / "out"),
        "sets": {
            "own": {"train": str(shards), "test": str(shards)},
            "made": {"kind": "sprites", "settings": {"size": 32, "frames": 8}, "clips": 16, "test_clips": 12},
        },
        "choices": {"plain": {"about": "the base"}},
    }  # fmt: skip
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    assert main(["compare-objectives", str(tmp_path / "study.yaml")]) == 0
    shown = capsys.readouterr().out
    assert "On own:" in shown
    assert "On made:" in shown
    found = json.loads((tmp_path / "out" / "sets.json").read_text())
    assert {name: len(rows[0]["top1"]["knn"]) for name, rows in found.items()} == {"own": 2, "made": 2}
    assert main(["compare-objectives", str(tmp_path / "study.yaml"), "seeds=1"]) == 0, "finished runs are kept"
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({**study, "sets": {}}))
    assert main(["compare-objectives", str(tmp_path / "study.yaml")]) == 2
    assert "or give several data sets as sets" in capsys.readouterr().err
