"""One key for the length of a run."""

from dataclasses import replace
from pathlib import Path

import pytest

from launch.config import load_config, to_yaml
from launch.training.budget import Clock, parse_duration, within_budget
from launch.training.config import RunConfig, TrainConfig


def test_durations_are_read_or_refused() -> None:
    assert [parse_duration(text, "x") for text in ("90s", "10min", "2.5h", "5d")] == [90, 600, 9000, 432_000]
    for wrong in ("10", "ten min", "-5min", "0s", "5 weeks"):
        with pytest.raises(ValueError, match=r"run.budget must be a duration like 90s, 10min, 2.5h or 5d"):
            parse_duration(wrong, "run.budget")


def test_total_clips_set_the_steps() -> None:
    assert RunConfig(total_clips=1000, batch=32).total_steps == 31
    config = load_config(TrainConfig, None, ["run.total_clips=6400", "run.batch=64"])
    assert config.run.total_steps == config.jepa.steps == 100
    with pytest.raises(ValueError, match=r"run.total_clips=5 or run.budget=1h, not both"):
        RunConfig(total_clips=5, budget="1h")


def test_the_budget_is_measured_once_and_kept(tmp_path: Path) -> None:
    tried: list[TrainConfig] = []

    def train(config: TrainConfig, callbacks: list[Clock]) -> None:
        tried.append(config)
        callbacks[0].seconds, callbacks[0].steps = 10.0, 20  # half a second a step

    config = load_config(TrainConfig, None, ["run.budget=1min", f"run.output={tmp_path}"])
    fitted = within_budget(train, config, ranks=1)
    assert fitted.run.steps == 120
    assert tried[0].run.output != str(tmp_path)
    (tmp_path / "config.yaml").write_text(to_yaml(fitted))
    assert within_budget(train, config, ranks=8).run.steps == 120
    assert len(tried) == 1
    with pytest.raises(ValueError, match=r"requires a single process, got 8"):
        within_budget(train, replace(config, run=replace(config.run, budget="2min")), ranks=8)
