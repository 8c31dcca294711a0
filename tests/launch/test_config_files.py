"""YAML files that start from other files, and what every ready file resolves to."""

import json
import os
from pathlib import Path

import pytest
from config_kinds import KINDS
from omegaconf import OmegaConf

from launch.__main__ import main
from launch.config import load_config, read_values, to_yaml
from launch.training.config import TrainConfig

CONFIGS = Path(__file__).parents[2] / "configs"
RECORDED = Path(__file__).parent / "resolved_configs.json"
FILES = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.yaml"))


def write(folder: Path, **texts: str) -> None:
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text)


@pytest.mark.parametrize("name", FILES)
def test_ready_files_resolve_to_what_was_recorded(name: str) -> None:
    """GOLDEN=1 records them anew; what it changes in the recorded file is what a user's next run changes in."""
    kind: type = KINDS[name.split("/")[0]]
    config = load_config(kind, CONFIGS / name, [])
    recorded = json.loads(RECORDED.read_text()) if RECORDED.is_file() else {}
    if os.environ.get("GOLDEN"):
        recorded[name] = OmegaConf.to_container(OmegaConf.create(to_yaml(config)))
        lines = [f"{json.dumps(key)}: {json.dumps(recorded[key])}" for key in sorted(recorded)]
        RECORDED.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    assert read_values(kind, recorded[name], name) == config


def test_a_file_starts_from_its_base_and_that_from_its_own(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    write(tmp_path, first="run: {steps: 7, batch: 8}\ndata: {crop: 64}")
    write(tmp_path / "below", second="base: ../first.yaml\nrun: {batch: 4}", third="base: second.yaml\nrun: {keep: 3}")
    config = load_config(TrainConfig, tmp_path / "below" / "third.yaml", ["run.seed=5"])
    assert (config.run.steps, config.run.batch, config.run.keep, config.run.seed) == (7, 4, 3, 5)
    assert config.data.crop == 64


def test_a_missing_base_is_named_with_the_file_that_asks_for_it(tmp_path: Path) -> None:
    write(tmp_path, one="base: vitL.yaml", vitl="{}")
    with pytest.raises(
        FileNotFoundError, match=r"one\.yaml: base: vitL\.yaml does not exist.*did you mean .*vitl\.yaml"
    ):
        load_config(TrainConfig, tmp_path / "one.yaml", [])


@pytest.mark.parametrize(("start", "cycle"), [("one", r"one\.yaml -> .*two\.yaml -> .*one\.yaml"), ("self", r"self")])
def test_a_cycle_of_bases_is_refused_and_names_the_files(tmp_path: Path, start: str, cycle: str) -> None:
    write(tmp_path, one="base: two.yaml", two="base: one.yaml", self="base: self.yaml")
    with pytest.raises(ValueError, match=rf"closes a cycle, .*{cycle}"):
        load_config(TrainConfig, tmp_path / f"{start}.yaml", [])


def test_a_wrong_key_in_a_base_is_blamed_on_the_base(tmp_path: Path) -> None:
    write(tmp_path, low="run: {stesp: 3}", high="base: low.yaml")
    with pytest.raises(ValueError, match=r"low\.yaml: there is no key run\.stesp"):
        load_config(TrainConfig, tmp_path / "high.yaml", [])


@pytest.mark.parametrize(("text", "message"), [("run: {steps: 3", "is not YAML"), ("- 3", "found a list")])
def test_a_file_that_is_no_config_is_named(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path, broken=text)
    with pytest.raises(ValueError, match=rf"broken\.yaml .*{message}"):
        load_config(TrainConfig, tmp_path / "broken.yaml", [])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["configs/pretrain/vjepa2_vitll.yaml"], "vjepa2_vitl"),
        (["vjepa2-vitl"], "vjepa2_vitl"),
        (["run.steps=3"], "the YAML file must come first"),
    ],
)
def test_a_missing_config_is_answered_with_the_nearest_files(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_missing_config_is_answered_with_files_of_its_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, kitchens="{}")
    assert main(["train", str(tmp_path / "kitchen.yaml")]) == 2
    assert "kitchens.yaml" in capsys.readouterr().err
