"""Where a run is, told from its files."""

import csv
import json
import os
import socket
import time
from pathlib import Path

import pytest

from launch.__main__ import main
from launch.training.rundir import add_event

CONFIG = str(Path(__file__).parent.parent.parent / "configs" / "pretrain" / "tiny_cpu.yaml")


@pytest.fixture(autouse=True)
def _no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)


def shown(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["status", str(folder)]) == 0
    return capsys.readouterr().out


def write_progress(folder: Path, age: float) -> None:
    now = time.time() - age
    facts = {"step": 150, "steps": 1000, "time": now, "since": now - 100, "first": 100}
    (folder / "progress.json").write_text(json.dumps(facts))


def test_a_finished_run_shows_its_steps_checkpoint_and_loss(
    quick: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", CONFIG, *quick]) == 0
    capsys.readouterr()
    table = shown(tmp_path / "run", capsys)
    with (tmp_path / "run" / "csv" / "metrics.csv").open(newline="") as file:
        last = [float(row["loss"]) for row in csv.DictReader(file) if row["loss"]][-1]
    for part in ("finished", "6/6", "step 6, 0:00:0", f"{last:.4f}", "STARTS"):
        assert part in table, table


def test_rate_and_time_left_count_from_the_last_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add_event(tmp_path, "start")
    write_progress(tmp_path, age=0)
    table = shown(tmp_path, capsys)
    for part in ("running", "150/1000", "0.50", "0:28:20"):  # 50 steps in 100 s; 850 are left
        assert part in table, table


def test_a_process_that_is_gone_is_called_killed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = {"event": "start", "time": time.time(), "host": socket.gethostname(), "process": 2**22 + 1, "job": None}
    (tmp_path / "history.jsonl").write_text(json.dumps(line) + "\n")
    write_progress(tmp_path, age=5)
    assert "killed" in shown(tmp_path, capsys)


def test_a_run_elsewhere_without_a_sign_of_life_is_called_silent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = {"event": "start", "time": time.time() - 9000, "host": "elsewhere", "process": os.getpid(), "job": None}
    (tmp_path / "history.jsonl").write_text(json.dumps(line) + "\n")
    write_progress(tmp_path, age=7200)
    said = shown(tmp_path, capsys)
    assert "silent" in said
    assert "last heartbeat 2:00:0" in said
    write_progress(tmp_path, age=3)
    assert "running" in shown(tmp_path, capsys)


def test_a_failed_run_shows_the_error_of_the_rank_that_failed_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_event(tmp_path, "start")
    add_event(tmp_path, "failed", step=3, error="RuntimeError: connection closed by peer")
    (tmp_path / "logs").mkdir()
    for rank, said in ((1, "error: no room left on the disk"), (0, "RuntimeError: connection closed by peer")):
        log = tmp_path / "logs" / f"rank-{rank}.log"
        log.write_text(f"step 3\n{said}\n")
        os.utime(log, (1000 - rank, 1000 - rank))
    said = shown(tmp_path, capsys)
    assert "failed" in said
    assert "rank-1.log: error: no room left on the disk" in said


def test_a_folder_that_is_no_run_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(tmp_path)]) == 2
    assert "is not a run directory" in capsys.readouterr().err
