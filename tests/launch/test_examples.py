"""Every example does what its header says, through the command line, in under 40 lines of code."""

import csv
import json
from pathlib import Path

import pytest

from data.manifest import Manifest
from launch.__main__ import main
from launch.training.checkpoints import load_module

EXAMPLES = Path(__file__).parents[2] / "examples"
FILES = sorted(EXAMPLES.glob("*.py"))


def train(quick: list[str], name: str, *words: str) -> None:
    assert main(["train", "tiny_cpu", *quick, "data.workers=0", f"run.plugins=[{EXAMPLES / name}]", *words]) == 0


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_example_is_short_and_says_how_to_run_it(file: Path) -> None:
    text = file.read_text()
    header, code = text.split('"""', 2)[1:]
    assert f"examples/{file.name}" in header
    assert header.split("\n\n")[1].startswith("vjepa ")
    assert len([line for line in code.splitlines() if line.strip()]) < 40


def test_own_mask_trains(quick: list[str], tmp_path: Path) -> None:
    train([word for word in quick if "masks.ahead" not in word], "own_mask.py", "masks.band.kind=band")
    assert set(load_module(tmp_path / "run").config.masks) == {"band"}


def test_own_objective_trains(quick: list[str], tmp_path: Path) -> None:
    train(quick, "own_objective.py", "objective=swap", "swap.width=4")
    assert load_module(tmp_path / "run").objective.classifier[0].out_features == 4


def test_own_encoder_trains(quick: list[str], tmp_path: Path) -> None:
    train(quick, "own_encoder.py", "encoder.kind=timm_frames")
    assert type(load_module(tmp_path / "run").context_encoder).__name__ == "TimmFrames"


def test_own_callback_is_called(quick: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    train(quick, "own_callback.py")
    assert "4 of 4 quarters: step 6, loss" in capsys.readouterr().out


def test_own_logger_gets_config_and_metrics(quick: list[str], tmp_path: Path) -> None:
    train(quick, "own_logger.py", "run.loggers=[lines]")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["config"]["run.steps"] == "6"
    assert [line["step"] for line in lines if "loss" in line] == list(range(6))


def test_own_data_set_is_generated_and_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.generated.videos.FEWEST", 2)  # two processes, which import the plugin themselves
    words = [
        "--plugin",
        str(EXAMPLES / "own_data.py"),
        "generate",
        "swing",
        str(tmp_path / "swing"),
        "--clips",
        "4",
        "--jobs",
        "2",
    ]
    assert main(words) == 0
    manifest = Manifest.load(str(next((tmp_path / "swing").rglob("manifest.json")).parent))
    assert (manifest.samples, manifest.classes) == (4, ["long", "short"])


def test_own_head_is_probed(quick: list[str], shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(quick, "own_callback.py")
    words = [
        "probe", "own", f"encoder={tmp_path / 'run'}", f"train={shards}", f"test={shards}", f"output={tmp_path / 'p'}",
        f"plugins=[{EXAMPLES / 'own_head.py'}]", "heads.names=[direction]", "baselines=[random]", "cache=memory",
        "data.workers=0", "data.stride=1", "views.segments=1",
    ]  # fmt: skip
    assert main(words) == 0
    assert "direction" in capsys.readouterr().out
    with (tmp_path / "p" / "predictions.csv").open() as file:
        assert len(list(csv.DictReader(file))) >= Manifest.load(str(shards)).samples
