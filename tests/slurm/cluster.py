"""A SLURM of two nodes on this machine, and what the tests ask of it."""

import contextlib
import csv
import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from launch.__main__ import main
from launch.training.checkpoints import list_checkpoints

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
CONFIG = str(ROOT / "configs" / "pretrain" / "tiny_cpu.yaml")


def run(*words: str, seconds: float = 120) -> str:
    """Output of a command that must succeed."""
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


def submit(words: list[str], *options: str) -> str:
    """Submit a training on both nodes; the number of its job."""
    return submit_chain(CONFIG, *words, "--nodes=2", "--gpus-per-node=0", *options)[0]


def submit_chain(*words: str) -> list[str]:
    """Submit whatever these words say; the numbers of its jobs."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert main(["submit", *words]) == 0
    found = re.findall(r"submitted (?:\d+ jobs|job) (\d+)", said.getvalue())
    assert found, said.getvalue()
    return found


def facts(job: str) -> dict[str, str]:
    """What SLURM knows of a job."""
    said = run("scontrol", "show", "job", "--oneliner", job)
    return dict(word.split("=", 1) for word in said.split() if "=" in word)


def wait(until: Callable[[], bool], seconds: float, folder: Path) -> None:
    """Wait; what the run printed is shown where it takes too long."""
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, run("scontrol", "show", "job") + logs(folder)
        time.sleep(0.1)


def wait_for_step(folder: Path, step: int, seconds: float = 120) -> None:
    """Wait until a step is in the csv."""
    wait(lambda: bool(losses(folder)) and max(losses(folder)) >= step, seconds, folder)


def wait_for_end(job: str, folder: Path, seconds: float = 240) -> str:
    """Wait until a job has ended for good; its state."""
    wait(
        lambda: facts(job)["JobState"] in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"), seconds, folder
    )
    return facts(job)["JobState"]


def losses(folder: Path) -> dict[int, str]:
    """step -> loss as written in the csv; a step that is there twice fails."""
    path = folder / "csv" / "metrics.csv"
    if not path.is_file():
        return {}
    with path.open(newline="") as file:
        rows = [(int(row["step"]), row["loss"]) for row in csv.DictReader(file) if row.get("loss")]
    assert len(dict(rows)) == len(rows), f"{path} has a step twice"
    return dict(rows)


def newest(folder: Path) -> int:
    """Step of the newest checkpoint."""
    return next(iter(list_checkpoints(folder)), 0)


def events(folder: Path) -> list[str]:
    """Names of what happened to a run."""
    return [json.loads(line)["event"] for line in (folder / "history.jsonl").read_text().splitlines()]


def logs(folder: Path) -> str:
    """All that a job printed."""
    return "\n".join(f"== {path}\n{path.read_text()}" for path in sorted(folder.glob("logs/*.log")))


def missing() -> str:
    """Why there can be no SLURM here; "" where there can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "a SLURM for tests needs Linux and root"
    for name in ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol"):
        if subprocess.run(["sh", "-c", f"command -v {name}"], capture_output=True).returncode:
            return f"{name} is not installed: apt-get install slurmctld slurmd slurm-client munge"
    return ""
