"""The processes of a run, and how a batch is divided among them.

The same command works for a single process, `torchrun` and `srun`: the launcher sets the number of processes in the
environment, so run.devices and run.nodes can be left out.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from launch.devices import count_devices, find_accelerator
from launch.ranks import find_rank
from launch.training.config import RunConfig


@dataclass(frozen=True)
class Ranks:
    """The processes of a run."""

    devices: int  # processes per node
    nodes: int
    rank: int = 0  # of this process
    starter: str = ""  # the launcher: torchrun, srun, or "" if there is none

    @property
    def world(self) -> int:
        """Total number of processes."""
        return self.devices * self.nodes


@dataclass(frozen=True)
class Share:
    """A rank's share of a step: `clips` per forward pass, `batches` accumulated per step."""

    clips: int
    batches: int


def find_ranks(run: RunConfig, environment: Mapping[str, str] = os.environ) -> Ranks:
    """The processes that torchrun or srun started, else run.devices on this machine.

    Raises ValueError if run.devices or run.nodes contradicts the launcher.
    """
    started = find_rank(environment)
    if started.starter not in ("torchrun", "srun"):  # Lightning starts the others itself
        if (run.nodes or 1) > 1:
            raise ValueError(
                f"run.nodes={run.nodes}: several nodes need `vjepa submit`, srun, or torchrun on each "
                "node; started without them, a run has only the devices of this machine"
            )
        rank = int(environment.get("LOCAL_RANK", 0))  # Lightning starts the other processes of this machine
        there = count_devices(run.accelerator)
        if find_accelerator(run.accelerator) == "gpu" and there < (run.devices or 1):
            raise ValueError(
                f"run.accelerator={run.accelerator} with run.devices={run.devices or 'all'}, but torch sees {there} "
                "GPUs here; `vjepa doctor` shows details"
            )
        return Ranks(run.devices or there, 1, rank)
    if started.starter == "torchrun":
        _divide(started.world, int(environment["LOCAL_WORLD_SIZE"]), "torchrun")  # 4 and 2 are not twice 3
    devices = _divide(started.world, started.nodes, started.starter)
    found = Ranks(devices, started.nodes, started.number, started.starter)
    for name, wanted, there in (("devices", run.devices, found.devices), ("nodes", run.nodes, found.nodes)):
        if wanted and wanted != there:
            raise ValueError(f"run.{name}={wanted}, but {found.starter} started {there}; leave run.{name} out")
    return found


def share_out(run: RunConfig, world: int) -> Share:
    """The share of run.batch of each of `world` ranks.

    run.batch_per_device is the number of clips per forward pass and determines the number of accumulated batches; if it
    is null, run.accumulate is that number. Raises ValueError if run.batch cannot be divided evenly.
    """
    if not run.batch_per_device:
        parts, name = world * run.accumulate, f"ranks x run.accumulate = {world} x {run.accumulate}"
    else:
        parts, name = world * run.batch_per_device, f"ranks x run.batch_per_device = {world} x {run.batch_per_device}"
    if run.batch % parts:
        raise ValueError(
            f"run.batch must be a multiple of {name}, got {run.batch}; the nearest are "
            f"{run.batch // parts * parts or parts} and {-(-run.batch // parts) * parts}"
        )
    if run.batch_per_device:
        return Share(run.batch_per_device, run.batch // parts)
    return Share(run.batch // parts, run.accumulate)


def share_of_device(run: RunConfig) -> Share:
    """One device's share of run.batch; run.devices and run.nodes count as one if not given."""
    return share_out(run, (run.devices or 1) * (run.nodes or 1))


def _divide(tasks: int, parts: int, starter: str) -> int:
    if tasks % parts:
        raise ValueError(
            f"{starter} started {tasks} processes, not the same number on every node; start equally many on each"
        )
    return tasks // parts
