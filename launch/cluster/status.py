"""The status of a run: state, step, rate, time left, starts, newest checkpoint and loss."""

import csv
import json
import os
import socket
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from launch.cluster.slurm import ask_state
from launch.training.checkpoints import list_checkpoints
from launch.training.rundir import HEARTBEAT, read_history

SILENT = 20 * HEARTBEAT  # seconds without a heartbeat after which a run on another machine counts as silent
COLUMNS = ("RUN", "STATE", "STEP", "STEPS/S", "LEFT", "STARTS", "CHECKPOINT", "LOSS")


@dataclass(frozen=True)
class Status:
    """One line of the table, and a note to print below it."""

    cells: tuple[str, ...]
    note: str = ""


def read_status(folder: Path) -> Status:
    """The status of one run; FileNotFoundError if the folder is not a run directory."""
    history = read_history(folder)
    if not history:
        raise FileNotFoundError(f"{folder} is not a run directory: it has no history.jsonl")
    progress = _read_progress(folder)
    state, note = find_state(folder, history, progress)
    step, steps, rate, left = 0, 0, "-", "-"
    if progress:
        step, steps, took = progress["step"], progress["steps"], progress["time"] - progress["since"]
        done = step - progress["first"]
        if done and took:
            rate = f"{done / took:.2f}"
            left = str(timedelta(seconds=round((steps - step) * took / done))) if step < steps else "-"
    checkpoint = "-"
    for saved, path in list_checkpoints(folder).items():
        checkpoint = f"step {saved}, {_ago(path.stat().st_mtime)}"
        break
    starts = sum(line["event"] == "start" for line in history)
    cells = (
        str(folder), state, f"{step}/{steps}" if steps else "-", rate, left, str(starts), checkpoint, read_loss(folder),
    )  # fmt: skip
    return Status(cells, note)


def find_state(folder: Path, history: list[dict[str, Any]], progress: dict[str, Any]) -> tuple[str, str]:
    """The state in a word or two, and a note if something went wrong."""
    last, job = history[-1], next((line["job"] for line in reversed(history) if line.get("job")), "")
    asked = ask_state(job) if last["event"] != "finished" else None
    if asked is not None and not (last["event"] == "failed" and asked[0] == "RUNNING"):
        state, restarts = asked
        described = f"{state.lower()}, job {job}" + (f", requeued {restarts} times" if restarts else "")
        return described, _first_error(folder) if state.startswith(("FAILED", "NODE_FAIL", "OUT_OF_MEMORY")) else ""
    if last["event"] == "failed":
        return "failed", _first_error(folder)
    if last["event"] == "interrupted":
        return f"stopped by {last['signal']}", "the same command resumes the run"
    if last["event"] != "start":
        return str(last["event"]), ""
    seen = max(last["time"], progress.get("time", 0.0))
    if last["host"] == socket.gethostname():
        if _is_alive(last["process"]):
            return "running", ""
        return "killed", f"process {last['process']} died without recording an end; the same command resumes the run"
    if time.time() - seen < SILENT:
        return "running", ""
    return "silent", f"last heartbeat {_ago(seen)}, on host {last['host']}"


def read_loss(folder: Path) -> str:
    """The last loss in the csv, or -."""
    path = folder / "csv" / "metrics.csv"
    if not path.is_file():
        return "-"
    with path.open(newline="") as file:
        losses = [row["loss"] for row in csv.DictReader(file) if row.get("loss")]
    return f"{float(losses[-1]):.4f}" if losses else "-"


def _read_progress(folder: Path) -> dict[str, Any]:
    path = folder / "progress.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return found


def _first_error(folder: Path) -> str:
    """The error of the rank whose log ended first: the errors of the others usually follow from it."""
    for path in sorted(folder.glob("logs/rank-*.log"), key=lambda path: path.stat().st_mtime):
        lines = path.read_text(errors="replace").splitlines()
        for line in reversed(lines[-200:]):
            if line.startswith("error:") or "Error: " in line:
                return f"{path.name}: {line.strip()}"
    return "see logs/"


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _ago(moment: float) -> str:
    return f"{timedelta(seconds=max(0, round(time.time() - moment)))} ago"
