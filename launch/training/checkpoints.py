"""The checkpoints of a run: written atomically, pruned, and verified before they are loaded.

A file under its final name is complete: it is written to a temporary file, synced to disk and renamed. Corruption after
that is found by the checksums inside the file, which `torch.load` does not verify.
"""

import logging
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as lightning
import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning.callbacks import Checkpoint
from torch import Tensor

from data.files import remove_leftovers, replacing
from data.loading.loader import TrainLoader
from launch.training.lightning import forget_batches
from launch.training.randomness import gather_random_states, set_random_state
from vjepa.config import JepaConfig
from vjepa.formats.pickled import load_pickled
from vjepa.jepa import JEPA, convert_weights

MODULE = ("state_dict", "config", "position")  # entries needed to rebuild the module
REQUIRED = (*MODULE, "global_step", "optimizer_states", "loops", "data", "random")  # entries needed to resume a run

KINDS: dict[str, type] = {
    "state_dict": dict, "config": dict, "position": int, "global_step": int, "optimizer_states": list, "loops": dict,
    "data": dict, "random": list,
}  # fmt: skip

logger = logging.getLogger(__name__)


def list_checkpoints(folder: Path) -> dict[int, Path]:
    """step -> checkpoint file of a run directory, newest first."""
    found = {}
    for path in (folder / "checkpoints").glob("step-*.ckpt"):
        number = path.stem.removeprefix("step-")
        if number.isdigit():
            found[int(number)] = path
    return dict(sorted(found.items(), reverse=True))


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest intact checkpoint of a run directory, or None if there are no checkpoints.

    Raises ValueError if all of them are damaged: silently starting from scratch would lose the run.
    """
    damaged = []
    for path in list_checkpoints(folder).values():
        fault = find_fault(path)
        if not fault:
            return path
        damaged.append(f"{path} is damaged ({fault})")
        logger.warning("CHECKPOINT DAMAGED: skipping %s: %s. Trying the one before it", path, fault)
    if damaged:
        raise ValueError(f"{'; '.join(damaged)}. No checkpoint is intact: restore one, or delete them to start over")
    return None


def find_fault(path: Path) -> str:
    """A description of the damage to a file; "" if it is intact."""
    try:
        with zipfile.ZipFile(path) as archive:
            part = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError, RuntimeError) as error:
        return f"{error or type(error).__name__}, {path.stat().st_size} bytes"
    if part:
        return f"the checksum of {part} does not match"
    try:
        read_checkpoint(path, ())  # the table of contents has no checksum
    except ValueError as error:
        return str(error)
    return ""


def read_checkpoint(path: Path, required: tuple[str, ...] = REQUIRED) -> dict[str, Any]:
    """The contents of a training checkpoint, with its tensors memory-mapped.

    Raises ValueError if the file is damaged, would run code, or is not a training checkpoint.
    """
    stored = load_pickled(path)
    missing = [name for name in required if name not in stored]
    if missing:
        raise ValueError(
            f"{path} is not a checkpoint of `vjepa train`: it lacks {', '.join(missing)} and contains "
            f"{', '.join(sorted(map(str, stored))[:8])}"
        )
    for name, kind in KINDS.items():
        if name in stored and not isinstance(stored[name], kind):
            raise ValueError(f"{path} is damaged: {name} must be a {kind.__name__}, not {type(stored[name]).__name__}")
    if not all(isinstance(tensor, Tensor) for tensor in stored.get("state_dict", {}).values()):
        raise ValueError(f"{path} is damaged: state_dict must hold nothing but tensors")
    if "state_dict" in stored:
        stored["state_dict"] = convert_weights(stored["state_dict"])
    return stored


def read_config_of(stored: Mapping[str, Any], path: Path) -> JepaConfig:
    """The JepaConfig stored in a checkpoint; ValueError if an incompatible version of this code wrote it."""
    try:
        return JepaConfig.from_dict(stored["config"])
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{path} was written by another version of this code ({error}); read it with that version"
        ) from error


def check_fits(stored: Mapping[str, Any], model: JEPA, path: Path) -> None:
    """Raise ValueError unless the checkpoint has exactly the tensors and shapes of the module and its optimiser."""
    _compare(stored["state_dict"], model.state_dict(), path, "weights")
    groups = stored["optimizer_states"][0]["param_groups"]
    state = stored["optimizer_states"][0]["state"]
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    wanted: dict[str, Tensor] = {}
    found: dict[str, Tensor] = {}
    own = model.configure_optimizers().param_groups
    if [len(group["params"]) for group in groups] != [len(group["params"]) for group in own]:
        raise ValueError(
            f"{path} does not match the config: its optimiser groups have {[len(g['params']) for g in groups]} "
            f"parameters, the run's have {[len(g['params']) for g in own]}"
        )
    for group, mine in zip(groups, own, strict=True):
        for number, parameter in zip(group["params"], mine["params"], strict=True):
            if state and (number in state or not model.config.leaves_unused):
                wanted[names[id(parameter)]] = parameter
            if number in state:
                found[names[id(parameter)]] = state[number]["exp_avg"]
    _compare(found, wanted, path, "the optimiser's state")


def load_module(checkpoint: str | Path) -> JEPA:
    """The module stored in a training checkpoint (a run directory or a .ckpt file).

    Raises FileNotFoundError if there is none, and ValueError if the file is damaged or not a training checkpoint.
    """
    path = Path(checkpoint)
    if path.is_dir():
        path = latest_checkpoint(path) or path / "checkpoints"
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}; give a run directory or a .ckpt file")
    stored = read_checkpoint(path, MODULE)
    model = JEPA(read_config_of(stored, path))
    _compare(stored["state_dict"], model.state_dict(), path, "weights")
    model.load_state_dict(stored["state_dict"])
    model.on_load_checkpoint(stored)
    return model


class AtomicCheckpointIO(TorchCheckpointIO):
    """Atomic writes: Lightning copies from a temporary folder to the final name, this renames a file already synced."""

    def load_checkpoint(self, path: Any, *arguments: Any, **options: Any) -> dict[str, Any]:
        """Read a checkpoint, including those of earlier versions."""
        stored: dict[str, Any] = super().load_checkpoint(path, *arguments, **options)
        return {**stored, "state_dict": convert_weights(stored["state_dict"])}

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint; `path` keeps the old file, or none, until the new one is completely on disk."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as part:
            torch.save(checkpoint, part)


class Saver(Checkpoint):
    """Writes a checkpoint every `every` optimiser steps and at the end, and removes old ones.

    It writes when the next batch starts: by then the previous step is in the logs, so a run that is killed and resumed
    has logged every step. Progress is stored in optimiser steps only, because on another number of ranks a step may
    consist of another number of batches.
    """

    def __init__(self, folder: Path, every: int, keep: int, keep_every: int, loader: TrainLoader) -> None:
        self.folder, self.every, self.keep, self.keep_every = folder, every, keep, keep_every
        self.loader = loader
        self.saved = 0  # step of the newest checkpoint
        self.random: list[dict[str, Any]] = []  # RNG states to restore, by rank

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Restore the RNG state; the checkpoint that the run resumed from need not be written again."""
        self.saved = trainer.global_step
        if trainer.global_rank < len(self.random):
            set_random_state(self.random[trainer.global_rank])

    def on_train_batch_start(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Write a checkpoint when one is due."""
        if trainer.global_step != self.saved and trainer.global_step % self.every == 0:
            self.write(trainer)

    def on_train_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Always write a checkpoint of the last step."""
        if trainer.global_step != self.saved:
            self.write(trainer)

    def write(self, trainer: lightning.Trainer) -> None:
        """Write a checkpoint of the current state, between two optimiser steps; called on all ranks."""
        for logger_of_run in trainer.loggers:
            logger_of_run.save()
        self.saved = trainer.global_step
        trainer.save_checkpoint(self.folder / "checkpoints" / f"step-{self.saved:07d}.ckpt", weights_only=False)
        if trainer.is_global_zero:
            self.remove_old()

    def remove_old(self) -> None:
        """Keep the newest `keep` and every `keep_every` steps; partial files of a killed run are removed too."""
        for number, (step, path) in enumerate(list_checkpoints(self.folder).items()):
            if number >= self.keep and not (self.keep_every and step % self.keep_every == 0):
                path.unlink()
        remove_leftovers(self.folder / "checkpoints")

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the stream position and the RNG states of all ranks; called on all ranks."""
        assert isinstance(module, JEPA)
        checkpoint["data"] = {**self.loader.state_dict(), "position": module.position}
        checkpoint["random"] = gather_random_states()
        forget_batches(checkpoint, trainer.global_step)

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the RNG states, to be restored when training starts."""
        self.random = checkpoint["random"]


def _compare(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: Path, what: str) -> None:
    faults = [f"{name} is missing" for name in wanted if name not in found]
    faults += [f"{name} is not part of the model" for name in found if name not in wanted]
    faults += [
        f"{name} has shape {list(found[name].shape)} in the file and {list(wanted[name].shape)} in the config"
        for name in wanted
        if name in found and found[name].shape != wanted[name].shape
    ]
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise ValueError(f"{path} does not match the config, {what}: {'; '.join(faults[:3])}{more}")
