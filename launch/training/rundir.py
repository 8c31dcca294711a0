"""The run directory: it documents the run, rejects a different config, and keeps a history of starts and ends.

config.yaml        the resolved config of the last start
environment.yaml   versions, code, data and machine of the last start
history.jsonl      one line for each start and end
progress.json      current step and timing, written every few seconds during training
"""

import json
import os
import platform
import re
import socket
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytorch_lightning as lightning
import torch
from pytorch_lightning.callbacks import Callback

from data.files import claim_folder, remove_leftovers, write_json, write_text
from data.loading.loader import TrainLoader
from launch.cluster.snapshot import describe_code
from launch.config import to_yaml
from launch.devices import find_accelerator
from launch.training.config import TrainConfig
from launch.training.stored import load_stored
from vjepa.precision import choose_precision

RESUME_SAFE_KEYS = (
    "run.output", "run.devices", "run.nodes", "run.accumulate", "run.batch_per_device", "run.accelerator",
    "run.compile", "run.attention", "run.bucket_mb", "run.timeout", "run.progress", "run.loggers", "run.log_every",
    "run.checkpoint_every", "run.keep", "run.keep_every", "run.start", "teacher.weights", "encoder.checkpoint_",
    "data.path", "data.workers", "data.timeout", "data.cache", "data.cache_gb", "data.outage",
    "data.max_bad_fraction", "data.decoder", "health.",
)  # fmt: skip  # neither the sample order nor what is learned depends on them; the data has its own fingerprint

MIX_PATH_KEY = re.compile(r"data\.mix\.\d+\.path")

HEARTBEAT = 5.0  # seconds


def hold_run(folder: Path, rank: int) -> AbstractContextManager[object]:
    """Lock a run directory while this run uses it; InUseError if another process trains there.

    Rank 0 holds the lock for all ranks and removes leftovers of killed writers.
    """
    if rank:
        return nullcontext()
    lock = claim_folder(folder, "train", "choose another run.output")
    for directory in (folder, folder / "checkpoints", folder / "csv"):
        remove_leftovers(directory)
    return lock


def begin_run(folder: Path, config: TrainConfig, loader: TrainLoader, step: int, ranks: int, clips: int) -> None:
    """Record a start of the run, on `ranks` ranks with `clips` clips per forward pass each, in the run directory.

    Raises ValueError if it holds a run with a different config, naming the differences.
    """
    changed = check_same(folder, config) if step else []
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.yaml", to_yaml(config))  # atomic: other ranks may be reading it
    facts = describe_environment(loader)
    lines = [f"{name}: {json.dumps(value)}" for name, value in facts.items()]
    write_text(folder / "environment.yaml", "\n".join(lines) + "\n")
    (folder / "unfinished").unlink(missing_ok=True)
    add_event(
        folder, "start", step=step, ranks=ranks, clips=clips, changed=changed, code=facts["code"], data=facts["data"]
    )


def check_same(folder: Path, config: TrainConfig) -> list[str]:
    """Describe the settings that differ from those of the run in `folder` and are safe to change on resume.

    Raises ValueError naming the others, which would make it a different run.
    """
    before = read_config_of_run(folder)
    if before is None:
        return []
    old, new = list_settings(before), list_settings(config)
    differing = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    changes = {name: f"{name}: {_as_yaml(new.get(name))} (was {_as_yaml(old.get(name))})" for name in differing}
    unsafe = [
        changes[name]
        for name in differing
        if not name.startswith(RESUME_SAFE_KEYS) and not MIX_PATH_KEY.fullmatch(name)
    ]
    if unsafe:
        more = f" and {len(unsafe) - 8} more" if len(unsafe) > 8 else ""
        raise ValueError(
            f"{folder} holds a run with another config; it differs in {'; '.join(unsafe[:8])}{more}. "
            "Choose another run.output, or give the same values to continue"
        )
    return list(changes.values())


def read_config_of_run(folder: Path) -> TrainConfig | None:
    """The config of the run in a folder, None if there is no run; ValueError if it cannot be loaded."""
    stored = folder / "config.yaml"
    if not stored.is_file():
        return None
    try:
        return load_stored(stored)
    except ValueError as error:
        raise ValueError(
            f"{folder} holds a run of another version of this code ({error}); resume it with that version, or "
            "choose another run.output"
        ) from error


def settle_precision(config: TrainConfig) -> TrainConfig:
    """Resolve run.precision=auto: that of the run in run.output, else what the device supports natively."""
    run = config.run
    if run.precision != "auto":
        return config
    before = read_config_of_run(Path(run.output))
    device = "cuda" if find_accelerator(run.accelerator) == "gpu" else "cpu"
    chosen = before.run.precision if before else choose_precision("auto", device)
    return replace(config, run=replace(run, precision=chosen))


def check_share(folder: Path, config: TrainConfig, clips: int, continues: bool) -> None:
    """Raise ValueError if the per-device batch matters and `clips` is too small or differs from before.

    It matters for regularisers, objective=views, and masks truncated to the shortest of the batch.
    """
    if not config.jepa.follows_device_batch:
        return
    why = (
        "what is learned depends on the per-device batch (regulariser, objective=views, or masks without fixed lengths)"
    )
    if clips < 2:
        raise ValueError(f"{why}: it must be at least 2 clips, got {clips}; raise run.batch_per_device")
    starts = [event["clips"] for event in read_history(folder) if event["event"] == "start"]
    if continues and starts and starts[-1] != clips:
        raise ValueError(
            f"{why}: the run in {folder} used {starts[-1]} clips per device, this start would use {clips}; "
            f"give run.batch_per_device={starts[-1]}"
        )


def describe_environment(loader: TrainLoader) -> dict[str, Any]:
    """Versions, code, data and machine, as plain data."""
    cuda = torch.cuda.is_available()
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": version("pytorch-lightning"),
        "cuda": torch.version.cuda if cuda else None,
        "device": torch.cuda.get_device_name() if cuda else platform.machine(),
        "host": socket.gethostname(),
        "job": os.environ.get("SLURM_JOB_ID"),
        "code": describe_code(),
        "data": str(loader.state_dict()["fingerprint"]),
        "samples": sum(manifest.samples for manifest in loader.manifests),
    }


def add_event(folder: Path, event: str, **facts: Any) -> None:
    """Append a line to the history."""
    line = {
        "event": event, "time": round(time.time(), 1), "host": socket.gethostname(), "process": os.getpid(),
        "job": os.environ.get("SLURM_JOB_ID"), **facts,
    }  # fmt: skip
    with (folder / "history.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def read_history(folder: Path) -> list[dict[str, Any]]:
    """Starts and ends of a run; an incomplete line of a killed process is ignored."""
    path = folder / "history.jsonl"
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]


class Heartbeat(Callback):
    """Writes the progress of the run to progress.json, so that `status` needs only the files."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "progress.json"
        self.begun = self.written = 0.0
        self.first = 0

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Start the clock for rates."""
        self.begun, self.first = time.time(), trainer.global_step
        self.write(trainer)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write every few seconds."""
        if time.time() - self.written > HEARTBEAT:
            self.write(trainer)

    def on_train_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Write the last step."""
        self.write(trainer)

    def write(self, trainer: lightning.Trainer) -> None:
        """Replace the file."""
        self.written = time.time()
        if not trainer.is_global_zero:
            return
        facts = {
            "step": trainer.global_step, "steps": trainer.max_steps, "time": self.written,
            "since": self.begun, "first": self.first,
        }  # fmt: skip
        write_json(self.path, facts, indent=None)


def list_settings(config: TrainConfig) -> dict[str, Any]:
    """All keys with their values; run.steps is derived from run.total_clips if that is given."""
    return {**dict(_flatten(asdict(config))), "run.steps": config.run.total_steps}


def _as_yaml(value: Any) -> str:
    return "null" if value is None else str(value)


def _flatten(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            value = {str(number): part for number, part in enumerate(value)}
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
