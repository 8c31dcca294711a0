"""Misspelt keys, values and commands are answered with what was probably meant."""

import re
from pathlib import Path

import pytest

from launch.__main__ import COMMANDS, main
from launch.config import load_config
from launch.config_keys import config_keys
from launch.probing.probe import ProbeConfig
from launch.studies.compare_objectives import StudyConfig
from launch.suggest import ALIASES, suggest_keys
from launch.suggest import COMMANDS as OTHER_NAMES
from launch.training.config import TrainConfig


@pytest.mark.parametrize(
    ("wanted", "meant"),
    [
        ("optim.learning_rate", ["optim.lr"]),
        ("run.lr", ["optim.lr"]),
        ("lr", ["optim.lr"]),
        ("data.batch_size", ["run.batch", "run.batch_per_device"]),
        ("batch_size", ["run.batch", "run.batch_per_device"]),
        ("epochs", ["run.total_clips", "run.steps"]),
        ("run.epochs", ["run.total_clips", "run.steps"]),
        ("num_workers", ["data.workers"]),
        ("model", ["encoder.size"]),
        ("arch", ["encoder.size"]),
        ("optimizer.lr", ["optim.lr"]),
        ("run.stesp", ["run.steps"]),
        ("encoder.widht", ["encoder.width", "predictor.width"]),
        ("heath.min_rank", ["health.min_rank"]),
    ],
)
def test_a_key_of_another_name_or_place_is_found(wanted: str, meant: list[str]) -> None:
    assert [key.name for key in suggest_keys(wanted, TrainConfig)] == meant


def test_suggestions_are_keys_of_the_config_at_hand() -> None:
    assert [key.name for key in suggest_keys("batch_size", ProbeConfig)] == ["batch", "heads.attentive.batch"]
    assert [key.name for key in suggest_keys("model", ProbeConfig)] == ["encoder"]


def test_every_other_name_leads_to_a_key_and_is_none_itself() -> None:
    keys = {key for kind in (TrainConfig, ProbeConfig, StudyConfig) for key in config_keys(kind)}
    assert {target for targets in ALIASES.values() for target in targets} <= keys
    assert not keys & ALIASES.keys()
    assert set(OTHER_NAMES.values()) <= COMMANDS.keys()
    assert not COMMANDS.keys() & OTHER_NAMES.keys()


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("data.batch_size=8", "run.batch (clips per optimiser step, over all devices and accumulated batches) or"),
        ("wandb.project=x", "logs to Weights & Biases"),
        ("base=other.yaml", "base: works only in a YAML file"),
        ("zzqq=1", "the config has objective, encoder"),
        ("run.steps", "run.steps is a key without a value, it must have the form key=value: run.steps=... (int)"),
        ("run.stesp", "'run.stesp' must have the form key=value"),
        ("other.yaml", "is a second file"),
        (
            "encoder.size=larg",
            "choose among tiny, small, base, large, huge, giant, gigantic, custom; did you mean large?",
        ),
        ("masks.a.kind=futur", "masks.a.kind=futur does not exist; choose among"),
        ("data.mix=[{pathh: x}]", "there is no key data.mix.0.pathh; did you mean data.mix.0.path"),
    ],
)
def test_a_wrong_override_says_what_to_write(word: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        load_config(TrainConfig, None, [word])


def test_a_wrong_choice_in_a_list_and_in_a_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "probe.yaml"
    path.write_text("heads: {names: [linear, atentive]}")
    with pytest.raises(ValueError, match=r"probe\.yaml: heads\.names=atentive .*did you mean attentive\?"):
        load_config(ProbeConfig, path, [])


@pytest.mark.parametrize(
    ("command", "meant"),
    [("trian", "train"), ("pretrain", "train"), ("eval", "probe"), ("compare-objektives", "compare-objectives")],
)
def test_a_misspelt_command_gets_the_nearest(command: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command]) == 2
    assert f"did you mean {meant}" in capsys.readouterr().err


def test_a_command_like_no_other_gets_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["zzqq"]) == 2
    assert "the commands are start, demo, generate, pack" in capsys.readouterr().err


def test_a_misspelt_config_gets_the_short_name_of_a_ready_made_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "smal"]) == 2
    assert "did you mean small" in capsys.readouterr().err
