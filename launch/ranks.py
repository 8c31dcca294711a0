"""The rank of this process, from the environment variables that torchrun or srun set.

Imports nothing slow, and does not depend on what the processes do.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Starter = Literal["", "torchrun", "srun", "environment"]


@dataclass(frozen=True)
class Rank:
    """The rank of this process among those that were started together."""

    number: int = 0
    world: int = 1
    local: int = 0  # rank within its node
    nodes: int = 1
    starter: Starter = ""  # environment: another launcher set RANK and WORLD_SIZE; "": a single process, no launcher


def find_rank(environment: Mapping[str, str] = os.environ) -> Rank:
    """The rank as set by torchrun or srun, else by RANK and WORLD_SIZE, else that of a single process.

    torchrun is checked first: its processes inherit the variables that srun set for torchrun itself. Raises ValueError
    if one of a launcher's variables is missing or not a number.
    """
    if {"LOCAL_WORLD_SIZE", "WORLD_SIZE", "TORCHELASTIC_RUN_ID"} <= environment.keys():
        world, on_node = _read(environment, "WORLD_SIZE"), _read(environment, "LOCAL_WORLD_SIZE")
        number = _read(environment, "RANK")
        return Rank(number, world, _read(environment, "LOCAL_RANK", number % on_node), -(-world // on_node), "torchrun")
    if _started_by_srun(environment):
        number, world = _read(environment, "SLURM_PROCID"), _read(environment, "SLURM_STEP_NUM_TASKS")
        nodes = _read(environment, "SLURM_STEP_NUM_NODES", 1)
        return Rank(number, world, _read(environment, "SLURM_LOCALID", number % -(-world // nodes)), nodes, "srun")
    if {"RANK", "WORLD_SIZE"} <= environment.keys():
        number = _read(environment, "RANK")
        return Rank(number, _read(environment, "WORLD_SIZE"), _read(environment, "LOCAL_RANK", 0), 1, "environment")
    return Rank()


def _started_by_srun(environment: Mapping[str, str]) -> bool:
    """Whether srun started this process: SLURM_STEP_ID is set inside a step, not in the batch script around it.

    An interactive shell of salloc or `srun --pty` is a step too, but processes started from it do not count.
    """
    if "SLURM_STEP_ID" not in environment or "SLURM_PROCID" not in environment or "LOCAL_WORLD_SIZE" in environment:
        return False
    alone = environment.get("SLURM_STEP_NUM_TASKS") == "1"
    shell = environment.get("SLURM_JOB_NAME") in ("bash", "interactive") or "SLURM_PTY_PORT" in environment
    return not (alone and shell)


def _read(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    found = environment.get(name, "" if default is None else str(default))
    if not found.isdigit():
        raise ValueError(f"the environment variable {name} must be a number when several processes are launched, got "
                         f"{found!r}; unset it, or launch them with torchrun or srun")  # fmt: skip
    return int(found)
