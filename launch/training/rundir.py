"""The run directory: it explains itself, refuses another config, and keeps a history of starts and ends.

config.yaml        the resolved config of the last start
environment.yaml   versions, code, data and machine of the last start
history.jsonl      a line for each start and end
progress.json      where the run is, written every few seconds while it trains
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

HARMLESS = (
    "run.output", "run.devices", "run.nodes", "run.accumulate", "run.batch_per_device", "run.accelerator",
    "run.compile", "run.progress", "run.log_every", "run.checkpoint_every", "run.keep", "run.keep_every",
    "run.start", "teacher.weights", "data.path", "data.workers", "data.timeout", "data.cache", "data.cache_gb",
    "data.max_bad_fraction", "health.",
)  # fmt: skip  # the order of samples and what is learned do not depend on them; the data has its own fingerprint

PART_PATH = re.compile(r"data\.mix\.\d+\.path")

HEARTBEAT = 5.0  # seconds


def hold_run(folder: Path, rank: int) -> AbstractContextManager[object]:
    """Keep other runs out of a run directory while this one is in it; InUseError where another process trains there.

    The first rank holds it for all of them, and what killed writers left there goes.
    """
    if rank:
        return nullcontext()
    lock = claim_folder(folder, "train", "choose another run.output")
    for place in (folder, folder / "checkpoints", folder / "csv"):
        remove_leftovers(place)
    return lock


def begin_run(folder: Path, config: TrainConfig, loader: TrainLoader, step: int, ranks: int, clips: int) -> None:
    """Write into the run directory what is about to happen there, `ranks` taking `clips` at once each.

    Raises ValueError where it holds a run with another config: what differs is named.
    """
    changed = check_same(folder, config) if step else []
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.yaml", to_yaml(config))  # other ranks may be reading it
    facts = describe_environment(loader)
    lines = [f"{name}: {json.dumps(value)}" for name, value in facts.items()]
    write_text(folder / "environment.yaml", "\n".join(lines) + "\n")
    (folder / "unfinished").unlink(missing_ok=True)
    add_event(
        folder, "start", step=step, ranks=ranks, clips=clips, changed=changed, code=facts["code"], data=facts["data"]
    )


def check_same(folder: Path, config: TrainConfig) -> list[str]:
    """Keys that differ from those of the run in `folder` without harm, in words.

    Raises ValueError that names the others, which would make it another run.
    """
    before = read_config_of_run(folder)
    if before is None:
        return []
    old, new = _settings(before), _settings(config)
    differing = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    words = {name: f"{name}: {_word(new.get(name))} (was {_word(old.get(name))})" for name in differing}
    harmful = [words[name] for name in differing if not name.startswith(HARMLESS) and not PART_PATH.fullmatch(name)]
    if harmful:
        more = f" and {len(harmful) - 8} more" if len(harmful) > 8 else ""
        raise ValueError(
            f"{folder} holds a run with another config; it differs in {'; '.join(harmful[:8])}{more}. "
            "Choose another run.output, or give the same values to continue"
        )
    return list(words.values())


def read_config_of_run(folder: Path) -> TrainConfig | None:
    """The config that the run in a folder began with, None where there is none; ValueError where it does not load."""
    stored = folder / "config.yaml"
    if not stored.is_file():
        return None
    try:
        return load_stored(stored)
    except ValueError as error:
        raise ValueError(
            f"{folder} holds a run of another version of this code ({error}); continue it with that version, or "
            "choose another run.output"
        ) from error


def settle_precision(config: TrainConfig) -> TrainConfig:
    """run.precision=auto made definite: as the run in run.output began, else what the device computes in natively."""
    run = config.run
    if run.precision != "auto":
        return config
    before = read_config_of_run(Path(run.output))
    device = "cuda" if find_accelerator(run.accelerator) == "gpu" else "cpu"
    chosen = before.run.precision if before else choose_precision("auto", device)
    return replace(config, run=replace(run, precision=chosen))


def check_share(folder: Path, config: TrainConfig, clips: int, continues: bool) -> None:
    """Raise ValueError where a device takes too few `clips` at once, or not as many as before, and it matters.

    Regularisers, views and masks that are cut to the shortest look at the clips of one device.
    """
    if not config.jepa.follows_device_batch:
        return
    why = "what is learned depends on the clips of a device (regulariser, objective=views, or masks without keep)"
    if clips < 2:
        raise ValueError(f"{why}: a device must take at least 2 at once, not {clips}; raise run.batch_per_device")
    starts = [event["clips"] for event in read_history(folder) if event["event"] == "start"]
    if continues and starts and starts[-1] != clips:
        raise ValueError(
            f"{why}: the run in {folder} took {starts[-1]} at once, now a device would take {clips}; "
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
    """Add a line to the history."""
    line = {
        "event": event, "time": round(time.time(), 1), "host": socket.gethostname(), "process": os.getpid(),
        "job": os.environ.get("SLURM_JOB_ID"), **facts,
    }  # fmt: skip
    with (folder / "history.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def read_history(folder: Path) -> list[dict[str, Any]]:
    """Starts and ends of a run; a line that a killed process cut short does not count."""
    path = folder / "history.jsonl"
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]


class Heartbeat(Callback):
    """Writes where the run is, so that `status` can say it from the files alone."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "progress.json"
        self.begun = self.written = 0.0
        self.first = 0

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Rates count from here."""
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


def _settings(config: TrainConfig) -> dict[str, Any]:
    """All keys with their values; run.steps as it follows from run.total_clips where that is given."""
    return {**dict(_flatten(asdict(config))), "run.steps": config.run.total_steps}


def _word(value: Any) -> str:
    return "null" if value is None else str(value)


def _flatten(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            value = {str(number): part for number, part in enumerate(value)}
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
