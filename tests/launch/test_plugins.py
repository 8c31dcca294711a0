"""Parts of a user's own, in a file that no package knows, train, probe and export through the command line."""

import csv
import os
from pathlib import Path

import pytest
import torch

from launch.__main__ import main
from launch.config import load_config
from launch.plugins import take_plugins
from launch.training.checkpoints import load_module
from launch.training.config import TrainConfig
from vjepa.registry import MASKS, OBJECTIVES, import_plugins

PARTS = str(Path(__file__).parent / "plugins" / "parts.py")
TINY = Path(__file__).parents[2] / "configs" / "pretrain" / "tiny_cpu.yaml"


def losses(run: Path) -> list[float]:
    with (run / "csv" / "metrics.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file) if row["loss"]]


def train(words: list[str], *more: str) -> int:
    return main(["train", str(TINY), *words, *more])


def test_a_mask_and_an_encoder_of_ones_own_train_probe_and_export(
    quick: list[str], shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*quick, f"run.plugins=[{PARTS}]", "encoder.kind=convolutions", "masks.ahead.kind=checkerboard"]
    words = [*words, "regulariser.terms.shrink=0.5", "masks.ahead.options.flip=1.0"]
    assert train(words) == 0, capsys.readouterr().err
    run = tmp_path / "run"
    assert len(losses(run)) == 6
    module = load_module(run)
    assert type(module.context_encoder).__name__ == "ConvolutionalEncoder"
    hidden = MASKS.find("checkerboard").hide
    assert hidden is not None
    encoder = tmp_path / "encoder"
    assert main(["--plugin", PARTS, "export", str(run), str(encoder), "--no-picture"]) == 0, capsys.readouterr().err
    probe = [
        "probe", str(TINY.parents[1] / "probe" / "synthetic.yaml"), f"encoder={encoder}", f"train={shards}",
        f"test={shards}", "heads.names=[linear,nearest_mean]", "baselines=[random]", f"plugins=[{PARTS}]",
        "cache=memory", f"output={tmp_path / 'probe'}", "data.workers=0", "data.stride=1", "views.augmented=0",
    ]  # fmt: skip
    assert main(probe) == 0, capsys.readouterr().err
    assert "nearest_mean" in capsys.readouterr().out


def test_an_objective_of_ones_own_has_its_section_and_trains(
    quick: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*quick, f"run.plugins=[{PARTS}]", "objective=order", "order.width=4"]
    assert train(words) == 0, capsys.readouterr().err
    assert len(losses(tmp_path / "run")) == 6
    assert load_module(tmp_path / "run").objective.judge[0].out_features == 4
    assert train([*words, "run.steps=8"]) == 2  # a run with another length is another run
    assert "run.steps" in capsys.readouterr().err


def test_what_is_not_there_is_answered_with_the_nearest(quick: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for word, near in (
        ("objective=maskd", "masked"),
        ("masks.ahead.kind=blcks", "blocks"),
        ("teacher.source=averag", "average"),
    ):
        assert train([*quick, word]) == 2
        assert near in capsys.readouterr().err
    assert train([*quick, "run.plugins=[no.such.module]"]) == 2
    assert "there is no module 'no.such.module'" in capsys.readouterr().err
    assert main(["--plugin", "missing.py", "doctor"]) == 2
    assert "there is no file missing.py" in capsys.readouterr().err


def test_a_name_is_registered_once() -> None:
    import_plugins([PARTS])
    import_plugins([PARTS])  # again is fine
    with pytest.raises(ValueError, match=r"objective: 'masked' is registered twice"):
        OBJECTIVES.register("masked")(torch.nn.Linear)


def test_plugins_stand_anywhere_on_the_command_line() -> None:
    assert take_plugins(["train", "--plugin", "a.b", "x.yaml", "--plugin=c.py"]) == (
        ["train", "x.yaml"],
        ["a.b", "c.py"],
    )


def test_a_submission_takes_along_what_the_command_line_named(
    quick: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sbatch").write_text("#!/bin/sh\necho 17\n")
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.chdir(Path(PARTS).parent)
    words = [*quick, "masks.ahead.kind=checkerboard", "--gpus-per-node=0"]
    assert main(["--plugin", "parts.py", "submit", str(TINY), *words]) == 0
    submitted = str(tmp_path / "run" / "submitted.yaml")
    monkeypatch.chdir(tmp_path)
    assert load_config(TrainConfig, submitted, []).run.plugins == (PARTS,)
    assert load_config(TrainConfig, str(TINY), quick).run.plugins == ()
