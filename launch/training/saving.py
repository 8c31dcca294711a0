"""Writes the checkpoints of a run while it trains on, and prunes them.

A save stops training only while the state is copied to the host's memory. A thread then writes the copy to a temporary
file, syncs it to disk and renames it: a file under its final name is complete, and a run killed at any moment still has
the checkpoint before. Old checkpoints are removed after that. A run ends when its last checkpoint is on disk.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy
from pathlib import Path
from typing import Any

import pytorch_lightning as lightning
import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning.callbacks import Checkpoint
from torch import Tensor

from data.files import remove_leftovers, replacing
from data.loading.loader import TrainLoader
from launch.training.checkpoints import list_checkpoints
from launch.training.lightning import forget_batches
from launch.training.randomness import gather_random_states, set_random_state
from launch.training.strategy import check_same_buffers
from vjepa.formats.pickled import load_pickled
from vjepa.jepa import JEPA, convert_weights


class CheckpointFiles(TorchCheckpointIO):
    """Lightning's reader and writer of checkpoints; writes happen in the background, one at a time."""

    def __init__(self) -> None:
        self.copies = HostCopies()
        self.written: Callable[[], None] = lambda: None  # called in the background after each write
        self.pending: Future[None] | None = None

    def load_checkpoint(self, path: Any, *arguments: Any, **options: Any) -> dict[str, Any]:
        """Read a checkpoint, including those of earlier versions.

        The file is memory-mapped, so the ranks of a node share one copy. On a CPU the optimiser would keep the mapped
        tensors as its state; it gets copies.
        """
        stored = load_pickled(Path(path))
        if not torch.cuda.is_available():
            stored["optimizer_states"] = HostCopies().copy(stored["optimizer_states"])
        return {**stored, "state_dict": convert_weights(stored["state_dict"])}

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Copy the state and begin to write it; OSError if the write before has failed.

        `path` keeps the old file, or none, until the new one is completely on disk.
        """
        self.wait()
        content = self.copies.copy(checkpoint)
        thread = ThreadPoolExecutor(1, "checkpoint")  # not kept: loader processes are forked without other threads
        self.pending = thread.submit(self._write, content, Path(path))
        thread.shutdown(wait=False)

    def wait(self) -> None:
        """Return once everything is on disk; raises what the writing raised."""
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.result()

    def teardown(self) -> None:
        """See `wait`; called by Lightning at the end of a run."""
        self.wait()

    def _write(self, content: dict[str, Any], target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as part:
            torch.save(content, part)
        self.written()


class HostCopies:
    """Copies nested state into the host's memory, pinned if it comes from a GPU; that memory is used again."""

    def __init__(self) -> None:
        self.kept: dict[tuple[Any, ...], Tensor] = {}

    def copy(self, state: Any) -> Any:
        """A copy that shares nothing that training changes; returns once it is complete."""
        copied = self._copy(state, ())
        if torch.cuda.is_available():
            torch.cuda.current_stream().synchronize()
        return copied

    def _copy(self, value: Any, key: tuple[Any, ...]) -> Any:
        if isinstance(value, Tensor):
            return self._copy_tensor(value.detach(), key)
        if isinstance(value, dict):
            copied = copy(value)  # of the same type, with its attributes
            copied.update({name: self._copy(part, (*key, name)) for name, part in value.items()})
            return copied
        if type(value) in (list, tuple):
            return type(value)(self._copy(part, (*key, number)) for number, part in enumerate(value))
        return value

    def _copy_tensor(self, tensor: Tensor, key: tuple[Any, ...]) -> Tensor:
        if tensor.device.type != "cuda":
            return tensor.clone()
        host = self.kept.get(key)
        if host is None or host.shape != tensor.shape or host.dtype != tensor.dtype:
            host = self.kept[key] = torch.empty_like(tensor, device="cpu", pin_memory=True)
        return host.copy_(tensor, non_blocking=True)


class Saver(Checkpoint):
    """Writes a checkpoint every `every` optimiser steps and at the end, and removes old ones.

    It writes when the next batch starts: by then the previous step is in the logs, so a run that is killed and resumed
    has logged every step. Progress is stored in optimiser steps only, because on another number of ranks a step may
    consist of another number of batches.
    """

    def __init__(
        self, folder: Path, every: int, keep: int, keep_every: int, loader: TrainLoader, files: CheckpointFiles
    ) -> None:
        self.folder, self.every, self.keep, self.keep_every = folder, every, keep, keep_every
        self.loader, self.files = loader, files
        self.saved = 0  # step of the newest checkpoint
        self.stops: list[float] = []  # seconds that each save stopped training, since they were last logged
        self.random: list[dict[str, Any]] = []  # RNG states to restore, by rank
        files.written = self.remove_old

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Restore the RNG state; the checkpoint that the run resumed from need not be written again."""
        self.saved = trainer.global_step
        check_same_buffers(module)
        if trainer.global_rank < len(self.random):
            set_random_state(self.random[trainer.global_rank])

    def on_train_batch_start(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Write a checkpoint when one is due."""
        if trainer.global_step != self.saved and trainer.global_step % self.every == 0:
            self.write(trainer)

    def on_train_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Always write a checkpoint of the last step, and wait until it is on disk."""
        if trainer.global_step != self.saved:
            self.write(trainer)
        self.files.wait()

    def write(self, trainer: lightning.Trainer) -> None:
        """Begin to write a checkpoint of the current state, between two optimiser steps; called on all ranks."""
        begun = time.perf_counter()
        for logger_of_run in trainer.loggers:
            logger_of_run.save()
        self.saved = trainer.global_step
        trainer.save_checkpoint(self.folder / "checkpoints" / f"step-{self.saved:07d}.ckpt", weights_only=False)
        self.stops.append(time.perf_counter() - begun)

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
        check_same_buffers(module)
        checkpoint["data"] = {**self.loader.state_dict(), "position": module.position}
        checkpoint["random"] = gather_random_states()
        forget_batches(checkpoint, trainer.global_step)

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the RNG states, to be restored when training starts."""
        self.random = checkpoint["random"]
