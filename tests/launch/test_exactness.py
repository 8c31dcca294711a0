"""A run that is killed, interrupted, damaged or moved ends as one that nobody disturbed."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from pytorch_lightning.callbacks import Callback

from launch.__main__ import main
from launch.config import load_config
from launch.training import signals
from launch.training.checkpoints import list_checkpoints, load_module
from launch.training.config import TrainConfig
from launch.training.trainer import train

ROOT = Path(__file__).parent.parent.parent
CONFIG = str(ROOT / "configs" / "pretrain" / "tiny_cpu.yaml")
COMMAND = [sys.executable, "-m", "launch", "train", CONFIG]


@pytest.fixture
def quick(quick: list[str]) -> list[str]:
    """With a worker process, whose state must not matter either."""
    return [*quick, "data.workers=1"]


def curve(folder: Path) -> dict[int, str]:
    """step -> loss as written; a step that is there twice fails."""
    path = folder / "csv" / "metrics.csv"
    if not path.is_file():
        return {}
    with path.open(newline="") as file:
        rows = [(int(row["step"]), row["loss"]) for row in csv.DictReader(file) if row.get("loss")]
    assert len(dict(rows)) == len(rows), "a step is there twice"
    return dict(rows)


def moved(words: list[str], folder: Path) -> list[str]:
    return [*words, f"run.output={folder}"]


def start(words: list[str]) -> "subprocess.Popen[str]":
    return subprocess.Popen([*COMMAND, *words], cwd=ROOT, text=True, stderr=subprocess.PIPE, start_new_session=True)


def wait_for_step(process: "subprocess.Popen[str]", folder: Path, step: int) -> None:
    end = time.monotonic() + 600
    while max(curve(folder), default=-1) < step:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, "too slow"
        time.sleep(0.02)


def kill(process: "subprocess.Popen[str]") -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def same_weights(one: Path, other: Path) -> None:
    mine, theirs = load_module(one).state_dict(), load_module(other).state_dict()
    for name, value in mine.items():
        assert torch.equal(value, theirs[name]), name


def test_killed_twice_a_run_ends_with_the_curve_and_weights_of_an_undisturbed_one(
    quick: list[str], tmp_path: Path
) -> None:
    words = [*quick, "run.steps=150", "run.checkpoint_every=40", "encoder.depth=1"]
    assert main(["train", CONFIG, *moved(words, tmp_path / "alone")]) == 0
    folder = tmp_path / "killed"
    for step in (30, 100):  # before the first checkpoint, and after it
        process = start(moved(words, folder))
        wait_for_step(process, folder, step)
        kill(process)
    assert main(["train", CONFIG, *moved(words, folder)]) == 0
    assert sorted(curve(folder)) == list(range(150))
    assert curve(folder) == curve(tmp_path / "alone")
    same_weights(folder, tmp_path / "alone")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_twenty_times_at_random_moments_a_run_ends_undisturbed(quick: list[str], tmp_path: Path) -> None:
    words = [*quick, "run.steps=1500", "run.checkpoint_every=20", "encoder.depth=1", "data.workers=2"]
    assert main(["train", CONFIG, *moved(words, tmp_path / "alone")]) == 0
    folder, draw, seen = tmp_path / "killed", random.Random(9), []
    for _ in range(20):
        process = start(moved(words, folder))
        if draw.random() < 0.8:  # most of them while it trains, the others while it starts
            wait_for_step(process, folder, max(curve(folder), default=-1) + 1)
        time.sleep(draw.uniform(0, 0.3))
        kill(process)
        seen.append(max(curve(folder), default=0))
    assert main(["train", CONFIG, *moved(words, folder)]) == 0
    assert sorted(curve(folder)) == list(range(1500))
    assert curve(folder) == curve(tmp_path / "alone")
    same_weights(folder, tmp_path / "alone")
    assert len(set(seen)) > 10, f"killed while it started, at steps {seen}"
    print("killed at steps", seen)


@pytest.mark.slow
def test_a_signal_saves_the_step_and_the_same_command_continues(quick: list[str], tmp_path: Path) -> None:
    words = [*quick, "run.steps=150", "run.checkpoint_every=1000", "encoder.depth=1"]
    assert main(["train", CONFIG, *moved(words, tmp_path / "alone")]) == 0
    folder = tmp_path / "stopped"
    process = start(moved(words, folder))
    wait_for_step(process, folder, 60)
    os.killpg(process.pid, signal.SIGTERM)  # as a scheduler does: the loading processes hear it too
    said = process.communicate(timeout=60)[1]
    assert process.returncode == signals.UNFINISHED, said
    saved = next(iter(list_checkpoints(folder)))
    assert f"stopped by SIGTERM after step {saved} of 150" in said
    assert "the same command continues" in said
    assert main(["train", CONFIG, *moved(words, folder)]) == 0
    assert curve(folder) == curve(tmp_path / "alone")
    same_weights(folder, tmp_path / "alone")
    history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    names = [line["event"] for line in history]
    assert names == ["start", "interrupted", "start", "finished"]


def test_resumed_with_accumulation_a_run_goes_on_between_two_updates(quick: list[str], tmp_path: Path) -> None:
    words = [*quick, "run.accumulate=2", "run.steps=5"]
    train(load_config(TrainConfig, CONFIG, moved(words, tmp_path / "alone")))
    folder = tmp_path / "parts"
    train(load_config(TrainConfig, CONFIG, moved(words, folder)))
    list_checkpoints(folder)[5].unlink()
    assert load_module(folder).position == 24
    train(load_config(TrainConfig, CONFIG, moved(words, folder)))
    assert curve(folder) == curve(tmp_path / "alone")
    same_weights(folder, tmp_path / "alone")


def test_resumed_on_other_ranks_a_run_sees_the_same_clips_in_the_same_order(quick: list[str], tmp_path: Path) -> None:
    """Four clips twice instead of eight at once: what another number of devices comes down to."""
    folder = tmp_path / "moved"
    whole = train(load_config(TrainConfig, CONFIG, moved(quick, tmp_path / "alone")))
    train(load_config(TrainConfig, CONFIG, moved(quick, folder)))
    list_checkpoints(folder)[6].unlink()
    changed = [*quick, "run.batch_per_device=4", "data.workers=0", "run.log_every=2"]
    other = train(load_config(TrainConfig, CONFIG, moved(changed, folder)))
    assert other.position == whole.position == 48
    for (name, mine), theirs in zip(whole.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-3, msg=name)
    last = json.loads((folder / "history.jsonl").read_text().splitlines()[-2])
    assert "run.batch_per_device: 4 (was null)" in last["changed"]


def test_a_finished_run_is_left_as_it_is(quick: list[str], tmp_path: Path) -> None:
    assert main(["train", CONFIG, *quick]) == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "checkpoints").iterdir()}
    rows = curve(tmp_path / "run")
    assert main(["train", CONFIG, *quick]) == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "checkpoints").iterdir()} == before
    assert curve(tmp_path / "run") == rows


def test_all_random_states_go_on(quick: list[str], tmp_path: Path) -> None:
    """Nothing in training draws from them today; what does tomorrow must not break the exactness."""
    whole, parts = Draw(), Draw()
    train(load_config(TrainConfig, CONFIG, moved(quick, tmp_path / "alone")), [whole])
    folder = tmp_path / "parts"
    train(load_config(TrainConfig, CONFIG, moved(quick, folder)), [parts])
    list_checkpoints(folder)[6].unlink()
    del parts.drawn[3:]
    for generator in (torch, np.random, random):
        getattr(generator, "manual_seed" if generator is torch else "seed")(99)
    train(load_config(TrainConfig, CONFIG, moved(quick, folder)), [parts])
    assert len(whole.drawn) == 6
    assert parts.drawn == whole.drawn


class Draw(Callback):
    """Draws from each generator in each step."""

    def __init__(self) -> None:
        self.drawn: list[tuple[float, float, float]] = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        self.drawn.append((torch.rand(1).item(), np.random.rand(), random.random()))
