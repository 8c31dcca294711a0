"""Training runs through the door: real shards, real decoding, checkpoints, ranks."""

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pytorch_lightning.callbacks import Callback

from launch.__main__ import main
from launch.config import load_config, to_yaml
from launch.training.checkpoints import load_module
from launch.training.config import TrainConfig
from launch.training.ranks import share_out
from launch.training.rundir import check_same
from launch.training.trainer import train

ROOT = Path(__file__).parent.parent.parent
CONFIG = str(ROOT / "configs" / "pretrain" / "tiny_cpu.yaml")


def losses(folder: Path) -> list[float]:
    with (folder / "csv" / "metrics.csv").open(newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file) if row["loss"]]


def test_a_run_directory_explains_itself(quick: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", CONFIG, *quick]) == 0
    assert "48 clips seen; 0 unreadable clips replaced" in capsys.readouterr().out
    run = tmp_path / "run"
    assert load_config(TrainConfig, run / "config.yaml", []) == load_config(TrainConfig, CONFIG, quick)
    assert "torch" in (run / "environment.yaml").read_text()
    assert len(losses(run)) == 6
    assert list((run / "tensorboard").glob("events.*"))
    assert load_module(run).position == 48


def test_resumed_run_equals_an_uninterrupted_one(quick: list[str], tmp_path: Path) -> None:
    config = load_config(TrainConfig, CONFIG, quick)
    whole = train(config)
    again = [word.replace("/run", "/parts") for word in quick]
    with pytest.raises(Stopped):
        train(load_config(TrainConfig, CONFIG, again), [StopAfter(4)])  # the last checkpoint is that of step 3
    resumed = train(load_config(TrainConfig, CONFIG, again))
    for (name, mine), theirs in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs), name
    assert resumed.position == whole.position == 48


def test_the_end_of_a_run_is_kept_wherever_it_falls(quick: list[str], tmp_path: Path) -> None:
    assert main(["train", CONFIG, *quick, "run.steps=4"]) == 0  # checkpoints are asked for every 3 steps
    assert load_module(tmp_path / "run").position == 32


def test_another_config_in_a_used_folder_is_refused(quick: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", CONFIG, *quick, "run.steps=3"]) == 0
    assert main(["train", CONFIG, *quick, "run.steps=3", "optim.lr=0.5"]) == 2
    assert "optim.lr: 0.5 (was 0.001)" in capsys.readouterr().err


def test_two_processes_under_torchrun_equal_one(quick: list[str], tmp_path: Path) -> None:
    assert main(["train", CONFIG, *quick, "run.steps=3", "data.workers=0"]) == 0
    pair = [word.replace("/run", "/pair") for word in quick]
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        f"--master-port={29_000 + os.getpid() % 2000}",
    ]
    subprocess.run(
        [*launcher, "-m", "launch", "train", CONFIG, *pair, "run.steps=3", "data.workers=0"],
        cwd=ROOT, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=240,
    )  # fmt: skip
    alone, together = load_module(tmp_path / "run"), load_module(tmp_path / "pair")
    assert alone.position == together.position == 24
    for (name, mine), theirs in zip(alone.state_dict().items(), together.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-3, msg=name)


def test_a_batch_that_cannot_be_shared_out_is_refused(quick: list[str]) -> None:
    run = load_config(TrainConfig, CONFIG, [*quick, "run.batch=10"]).run
    with pytest.raises(ValueError, match="run.batch must be a multiple of ranks x run.accumulate = 4 x 1, got 10"):
        share_out(run, 4)


def test_accumulation_gives_the_update_of_the_big_batch(quick: list[str], tmp_path: Path) -> None:
    big = train(load_config(TrainConfig, CONFIG, [*quick, "run.steps=2"]))
    parts = [word.replace("/run", "/parts") for word in quick]
    small = train(load_config(TrainConfig, CONFIG, [*parts, "run.steps=2", "run.accumulate=2"]))
    for (name, mine), theirs in zip(big.state_dict().items(), small.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-3, msg=name)


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        load_module(tmp_path)
    torch.save({"weights": 1}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="is not a checkpoint of"):
        load_module(tmp_path / "other.ckpt")


class Stopped(Exception):  # noqa: N818
    """Nothing that Lightning knows."""


class StopAfter(Callback):
    """Ends a run without warning after some steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        if trainer.global_step == self.steps:
            raise Stopped


def test_another_share_of_the_batch_is_refused_where_learning_depends_on_it(
    quick: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*quick, "regulariser.variance=0.1", "run.steps=3"]
    assert main(["train", CONFIG, *words, "run.batch_per_device=4"]) == 0
    assert main(["train", CONFIG, *words, "run.batch_per_device=8"]) == 2
    shown = capsys.readouterr().err
    assert "used 4 clips per device, this start would use 8; give run.batch_per_device=4" in shown
    assert main(["train", CONFIG, *words, f"run.output={tmp_path / 'one'}", "run.batch_per_device=1"]) == 2
    assert "must be at least 2 clips, got 1" in capsys.readouterr().err


def test_a_moved_mixture_goes_on_and_other_shares_do_not(quick: list[str], shards: Path, tmp_path: Path) -> None:
    words = [word for word in quick if not word.startswith("data.path=")]
    moved = tmp_path / "moved"
    shutil.copytree(shards, moved)
    for folder, weight in ((shards, 1.0), (moved, 1.0), (moved, 2.0)):
        config = load_config(TrainConfig, CONFIG, [*words, f"data.mix=[{{path: {folder}, weight: {weight}}}]"])
        if folder == shards:
            (tmp_path / "run").mkdir()
            (tmp_path / "run" / "config.yaml").write_text(to_yaml(config))
        elif weight == 1.0:
            assert check_same(tmp_path / "run", config) == [f"data.mix.0.path: {moved} (was {shards})"]
        else:
            with pytest.raises(ValueError, match=r"differs in data\.mix\.0\.weight: 2.0 \(was 1.0\)\."):
                check_same(tmp_path / "run", config)
