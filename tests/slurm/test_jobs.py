"""Jobs on a real SLURM: two nodes train together, are sent away, come back, and end as if nothing had been."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cluster import events, facts, logs, losses, newest, run, submit, wait, wait_for_end, wait_for_step

from launch.__main__ import main

STEPS = 300

FAILING = """#!/bin/bash
# python, but for the second rank, whose third step fails
[ "$SLURM_PROCID" = 1 ] || exec {python} "$@"
exec {python} -c '
import sys
from launch.__main__ import main
from vjepa.jepa import JEPA
step = JEPA.training_step
def fail(self, batch, index):
    if self.global_step == 3:
        raise ValueError("this rank has had enough")
    return step(self, batch, index)
JEPA.training_step = fail
sys.exit(main(sys.argv[3:]))
' "$@"
"""


def test_two_nodes_train_as_two_ranks(undisturbed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sorted(losses(undisturbed)) == list(range(STEPS))
    assert "MEMBER: 1/2" in (undisturbed / "logs" / "rank-0.log").read_text()
    assert "MEMBER: 2/2" in (undisturbed / "logs" / "rank-1.log").read_text()
    assert json.loads((undisturbed / "history.jsonl").read_text().splitlines()[1])["ranks"] == 2
    assert list((undisturbed / "code").glob("*/vjepa/jepa.py"))
    assert main(["status", str(undisturbed)]) == 0
    assert f"finished  {STEPS}/{STEPS}" in capsys.readouterr().out


def test_told_of_its_time_limit_a_run_comes_back_and_ends_undisturbed(
    undisturbed: Path, words: list[str], tmp_path: Path
) -> None:
    job = submit([*words, f"run.output={tmp_path}"])
    wait_for_step(tmp_path, 120)
    run("scancel", "--signal=USR1", job)
    assert wait_for_end(job, tmp_path) == "COMPLETED", logs(tmp_path)
    assert facts(job)["Restarts"] == "1"
    assert events(tmp_path) == ["submitted", "start", "interrupted", "start", "finished"]
    assert losses(tmp_path) == losses(undisturbed)


def test_cancelled_a_run_saves_and_stays_away(slurm: None, words: list[str], tmp_path: Path) -> None:
    job = submit([*words, f"run.output={tmp_path}", "run.checkpoint_every=250"])
    wait_for_step(tmp_path, 20)
    run("scancel", job)
    assert wait_for_end(job, tmp_path) == "CANCELLED", logs(tmp_path)
    wait(lambda: "interrupted" in events(tmp_path), 30, tmp_path)
    assert newest(tmp_path) % 250 > 0, logs(tmp_path)
    time.sleep(3)
    assert facts(job)["JobState"] == "CANCELLED"
    assert facts(job)["Restarts"] == "0"


def test_a_failing_rank_fails_the_job_at_once_with_its_error(
    slurm: None, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    python = tmp_path / "python"
    python.write_text(FAILING.format(python=sys.executable))
    python.chmod(0o755)
    folder = tmp_path / "run"
    job = submit([*words, f"run.output={folder}"], f"--python={python}")
    wait(lambda: "error: this rank has had enough" in logs(folder), 120, folder)
    assert wait_for_end(job, folder, 30) == "FAILED"
    assert facts(job)["Restarts"] == "0"
    assert "error: this rank has had enough" in (folder / "logs" / "rank-1.log").read_text()
    assert main(["status", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "failed" in shown
    assert "rank-1.log: error: this rank has had enough" in shown


@pytest.mark.slow
def test_an_urgent_partition_sends_a_run_away_and_it_comes_back(
    undisturbed: Path, words: list[str], tmp_path: Path
) -> None:
    job = submit([*words, f"run.output={tmp_path}"])
    wait_for_step(tmp_path, 120)
    run("sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 5")
    assert wait_for_end(job, tmp_path) == "COMPLETED", logs(tmp_path)
    assert facts(job)["Restarts"] == "1"
    assert events(tmp_path) == ["submitted", "start", "interrupted", "start", "finished"]
    assert losses(tmp_path) == losses(undisturbed)


@pytest.mark.slow
def test_requeued_by_somebody_else_a_run_saves_and_comes_back_once(
    undisturbed: Path, words: list[str], tmp_path: Path
) -> None:
    job = submit([*words, f"run.output={tmp_path}"])
    wait_for_step(tmp_path, 120)
    run("scontrol", "requeue", job)
    assert wait_for_end(job, tmp_path) == "COMPLETED", logs(tmp_path)
    assert facts(job)["Restarts"] == "1"
    assert events(tmp_path) == ["submitted", "start", "interrupted", "start", "finished"]
    assert losses(tmp_path) == losses(undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_run_outlives_its_time_limit(slurm: None, words: list[str], tmp_path: Path) -> None:
    long = [*words, "run.steps=6000", "run.checkpoint_every=100000"]
    job = submit([*long, f"run.output={tmp_path}"], "--time=1", "--notice=20")
    wait(lambda: events(tmp_path).count("start") == 2, 240, tmp_path)
    assert events(tmp_path) == ["submitted", "start", "interrupted", "start"]
    assert "SIGUSR1 received" in (tmp_path / "logs" / "rank-0.log").read_text()
    saved = newest(tmp_path)
    assert saved > 0
    wait_for_step(tmp_path, saved + 20)
    assert sorted(losses(tmp_path)) == list(range(max(losses(tmp_path)) + 1))
    run("scancel", job)


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_twenty_preemptions_at_random_moments_lose_nothing(
    slurm: None, words: list[str], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """From the first second on, so that signals also come while python starts, saves and leaves."""
    draw = random.Random(20)
    long = [*words, "run.steps=1500"]
    alone = tmp_path_factory.mktemp("alone")
    job = submit([*long, f"run.output={alone}"])
    assert wait_for_end(job, alone) == "COMPLETED", logs(alone)
    job, sent = submit([*long, f"run.output={tmp_path}"]), 0
    while int(facts(job)["Restarts"]) < 20:
        wait(lambda: facts(job)["JobState"] == "RUNNING", 300, tmp_path)
        moment = time.monotonic() + draw.uniform(0, 12)
        enough = max(losses(tmp_path), default=0) + 60  # or a fast machine is done before the twentieth
        wait(lambda: time.monotonic() > moment or max(losses(tmp_path), default=0) > enough, 60, tmp_path)  # noqa: B023
        sent += 1
        if draw.random() < 0.5:
            subprocess.run(["scancel", "--signal=USR1", job], stderr=subprocess.DEVNULL)  # it may just be leaving
        else:
            run("sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=true")
    assert wait_for_end(job, tmp_path, 900) == "COMPLETED", logs(tmp_path)
    assert losses(tmp_path) == losses(alone)
    print(f"{sent} signals, {events(tmp_path).count('start')} starts, {facts(job)['Restarts']} requeues")


@pytest.mark.slow
def test_one_run_of_a_sweep_comes_back_alone(slurm: None, words: list[str], tmp_path: Path) -> None:
    job = submit([*words, f"run.output={tmp_path}", "run.checkpoint_every=1000"], "--sweep=run.seed=0,1")
    folders = [tmp_path / "run.seed=0", tmp_path / "run.seed=1"]
    wait_for_step(folders[0], 20)
    run("scancel", "--signal=USR1", f"{job}_0")
    for number, folder in enumerate(folders):
        wait(lambda folder=folder: "finished" in events(folder), 240, folder)
        assert sorted(losses(folder)) == list(range(STEPS))
        assert events(folder).count("start") == 2 - number
    assert losses(folders[0]) != losses(folders[1])
