"""A run directory of an earlier version is continued."""

import shutil
from dataclasses import replace
from pathlib import Path

from launch.config import load_config, to_yaml
from launch.training.config import TrainConfig
from launch.training.rundir import check_same, read_config_of_run
from launch.training.stored import UNSET

HERE = Path(__file__).parent
CONFIG = HERE.parents[1] / "configs" / "pretrain" / "tiny_cpu.yaml"


def test_a_config_stored_with_zeros_for_unset_is_the_same_run(tmp_path: Path) -> None:
    shutil.copy(HERE / "stored_before_null.yaml", tmp_path / "config.yaml")
    config = load_config(TrainConfig, CONFIG, [])
    stored = read_config_of_run(tmp_path)
    assert stored is not None
    newer = {"data": replace(stored.data, cache=None), "run": replace(stored.run, compile=None)}  # defaults since then
    assert replace(stored, **newer) == config
    assert sorted(change.partition(":")[0] for change in check_same(tmp_path, config)) == ["data.cache", "run.compile"]


def test_every_migrated_key_may_be_null() -> None:
    for key in UNSET:
        load_config(TrainConfig, None, [f"{key}=null"])


def test_derived_steps_follow_the_batch_and_are_the_same_run_when_stored(tmp_path: Path) -> None:
    config = load_config(TrainConfig, CONFIG, ["run.total_clips=6400", "run.batch=64"])
    assert config.run.total_steps == 100
    assert replace(config.run, batch=32).total_steps == 200
    (tmp_path / "config.yaml").write_text(to_yaml(config).replace("steps: 100\n", "steps: 7\n"))
    assert "steps: 7" in (tmp_path / "config.yaml").read_text()
    assert check_same(tmp_path, config) == []
