"""All uses of Lightning's private API, in one place: every attribute is checked to exist before it is used.

setup.cfg allows only the versions that this was tested with.
"""

import logging
import warnings
from importlib.metadata import version
from typing import Any, TypeVar

import pytorch_lightning as lightning
import torch
from pytorch_lightning.accelerators import Accelerator, CUDAAccelerator

Kind = TypeVar("Kind")


class LightningChangedError(ImportError):
    """The installed Lightning lacks an attribute that this code uses."""


def leave_signals_alone(trainer: lightning.Trainer) -> None:
    """Keep Lightning from handling signals.

    Its SIGTERM handler waits for the other ranks inside the handler and ends the run without saving; and with several
    ranks it synchronises with the device before every batch to learn whether rank 0 received a SIGTERM.
    """
    connector = find_part(trainer, "_signal_connector")
    for name in ("received_sigterm", "register_signal_handlers", "teardown"):
        find_part(connector, name)
    loop = find_part(find_part(trainer, "fit_loop"), "epoch_loop")
    find_part(loop, "_broadcast_sigterm_tensor")
    trainer._signal_connector = NullSignalConnector()  # type: ignore[assignment]
    loop._broadcast_sigterm_tensor = lambda: None


class BoundGpu(CUDAAccelerator):
    """For ranks that see one GPU each, their own, as SLURM's --gpus-per-task arranges: it is number 0 for all of them.

    Lightning would look for as many GPUs as a node has ranks, and give rank 3 the one with number 3.
    """

    @staticmethod
    def parse_devices(devices: Any) -> list[int]:
        """Numbers for the ranks of a node."""
        return list(range(int(devices)))

    @staticmethod
    def get_parallel_devices(devices: Any) -> list[torch.device]:
        """The device of each rank of a node, as that rank sees it."""
        return [torch.device("cuda", 0)] * len(devices)


def choose_accelerator(name: str, ranks: int, launched: bool) -> str | Accelerator:
    """Lightning's accelerator for `ranks` processes on this node; `launched`: srun or torchrun started them."""
    if name == "gpu" and launched and ranks > 1 and torch.cuda.device_count() == 1:
        return BoundGpu()
    return name


class NullSignalConnector:
    """Replaces Lightning's signal connector: installs no handlers, receives nothing."""

    received_sigterm = False

    def register_signal_handlers(self) -> None:
        """Install nothing: our own handlers stay."""

    def teardown(self) -> None:
        """Nothing to restore."""


def log_interval(trainer: lightning.Trainer) -> int:
    """Optimiser steps between two logged steps."""
    return int(find_part(trainer, "log_every_n_steps"))


def find_callback(trainer: lightning.Trainer, kind: type[Kind]) -> Kind | None:
    """The run's callback of this class, or None."""
    return next((one for one in find_part(trainer, "callbacks") if isinstance(one, kind)), None)


def forget_batches(checkpoint: dict[str, Any], steps: int) -> None:
    """Make a checkpoint count `steps` optimiser steps and zero batches: batches per step depend on the ranks."""
    loop = find_entry(checkpoint, "loops", "fit_loop")
    for name in ("epoch_loop.batch_progress", "epoch_progress"):
        loop[name] = _zeroed(find_entry(loop, name))
    state = find_entry(loop, "epoch_loop.state_dict")
    find_entry(state, "_batches_that_stepped")
    state["_batches_that_stepped"] = steps


def quieten_lightning() -> None:
    """Silence Lightning's tips and device listing; its warnings stay."""
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning's own use of a deprecated function
    warnings.filterwarnings("ignore", message=".*`srun` command is available.*")  # find_ranks detects the launcher


def find_part(owner: Any, name: str) -> Any:
    """An attribute of one of Lightning's objects; LightningChangedError if it does not exist."""
    if not hasattr(owner, name):
        raise LightningChangedError(_explain(f"{type(owner).__name__}.{name}"))
    return getattr(owner, name)


def find_entry(content: dict[str, Any], *names: str) -> Any:
    """An entry of what Lightning stores in a checkpoint; LightningChangedError if it does not exist."""
    for count, name in enumerate(names, 1):
        if name not in content:
            raise LightningChangedError(_explain("checkpoint entry " + " / ".join(names[:count])))
        content = content[name]
    return content


def _explain(part: str) -> str:
    return (
        f"pytorch-lightning {version('pytorch-lightning')} has no {part}, which launch/training/lightning.py uses; "
        "install a version that setup.cfg allows (pip install -e . does)"
    )


def _zeroed(progress: Any) -> Any:
    """Lightning's nested progress counters, all set to zero."""
    if isinstance(progress, dict):
        return {name: _zeroed(value) for name, value in progress.items()}
    return progress if isinstance(progress, bool) else 0
