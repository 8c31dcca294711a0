"""A run directory has one run: the second is refused at once, the first is not touched."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data.files import claim_folder
from launch.__main__ import main
from launch.commands import train as command
from launch.config import load_config
from launch.training.checkpoints import load_module
from launch.training.config import TrainConfig
from launch.training.rundir import hold_run
from launch.training.trainer import train

ROOT = Path(__file__).parent.parent.parent
CONFIG = str(ROOT / "configs" / "pretrain" / "tiny_cpu.yaml")


def wait_for(file: Path, process: "subprocess.Popen[str]") -> None:
    end = time.monotonic() + 120
    while not file.is_file():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, "too slow"
        time.sleep(0.02)


def test_a_second_run_is_refused_while_the_first_goes_on_and_not_once_it_was_killed(
    quick: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, folder = [*quick, "run.steps=100000"], tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "launch", "train", CONFIG, *words],
        cwd=ROOT,
        text=True,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        wait_for(folder / "csv" / "metrics.csv", process)
        history = (folder / "history.jsonl").read_bytes()
        assert main(["train", CONFIG, *words]) == 2
        said = capsys.readouterr().err
        assert f"{folder} is in use by another train (process {process.pid} on" in said
        assert "choose another run.output" in said
        assert process.poll() is None
        assert (folder / "history.jsonl").read_bytes() == history
        assert "in use" not in (folder / "logs" / "rank-0.log").read_text()
        os.kill(process.pid, signal.SIGKILL)  # alone: its loading processes find out later
        process.wait(30)
        with hold_run(folder, rank=0):
            pass
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_refused_means_before_a_step_is_measured(
    quick: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "within_budget", lambda *_: pytest.fail("measured"))
    with claim_folder(tmp_path / "run", "train", ""):
        assert main(["train", CONFIG, *quick, "run.budget=1min"]) == 2
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".train.lock"]


def test_whoever_calls_train_is_refused_as_well(quick: list[str], tmp_path: Path) -> None:
    with claim_folder(tmp_path / "run", "train", ""), pytest.raises(OSError, match="in use by another train"):
        train(load_config(TrainConfig, CONFIG, quick))


def test_ranks_that_lightning_starts_share_the_first_ones_claim(quick: list[str], tmp_path: Path) -> None:
    words = [*quick, "run.steps=2", "run.devices=2", "run.accelerator=cpu", "data.workers=0"]
    for name in (".train.lock", ".config.yaml.0123abcd.part"):
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / name).write_text("")
    subprocess.run(
        [sys.executable, "-m", "launch", "train", CONFIG, *words],
        cwd=ROOT, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=240,
    )  # fmt: skip
    assert load_module(tmp_path / "run").position == 16
    assert not list((tmp_path / "run").rglob("*.part")), "what a killed run left is gone"
