"""Which of the processes of a command this is: torchrun or srun say it in the environment.

Imports nothing that takes time, and knows nothing of what the processes do.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Starter = Literal["", "torchrun", "srun", "environment"]


@dataclass(frozen=True)
class Rank:
    """This process among those that were started together."""

    number: int = 0
    world: int = 1
    local: int = 0  # among those of its node
    nodes: int = 1
    starter: Starter = ""  # environment: somebody who set RANK and WORLD_SIZE; "": nobody, it was started alone


def find_rank(environment: Mapping[str, str] = os.environ) -> Rank:
    """This process as torchrun or srun started it, else as RANK and WORLD_SIZE say, else alone.

    torchrun comes first: its processes inherit what srun said to torchrun itself. Raises ValueError where a variable is
    missing beside others of its starter, or is no number.
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
    """SLURM_STEP_ID is there in what srun starts, not in the batch script around it.

    A shell in a job, of salloc or `srun --pty`, is a step as well: who types into it starts processes by hand.
    """
    if "SLURM_STEP_ID" not in environment or "SLURM_PROCID" not in environment or "LOCAL_WORLD_SIZE" in environment:
        return False
    alone = environment.get("SLURM_STEP_NUM_TASKS") == "1"
    shell = environment.get("SLURM_JOB_NAME") in ("bash", "interactive") or "SLURM_PTY_PORT" in environment
    return not (alone and shell)


def _read(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    found = environment.get(name, "" if default is None else str(default))
    if not found.isdigit():
        raise ValueError(f"the environment variable {name} must be a number where processes are started together, got "
                         f"{found!r}; unset it, or start them with torchrun or srun")  # fmt: skip
    return int(found)
