"""Work done by two processes of one run, joined by gloo."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed, multiprocessing


def on_two_ranks(work: Callable[..., Any], config: Any, folder: Path, port: int) -> list[Any]:
    """What work(config, rank, 2) returns on each of two ranks; it comes back in files, for a process may end first."""
    workers = [
        multiprocessing.get_context("spawn").Process(target=_run, args=(work, config, rank, folder, port), daemon=True)
        for rank in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=280)
        assert worker.exitcode == 0
    return [torch.load(folder / f"rank-{rank}.pt") for rank in range(2)]


def _run(work: Callable[..., Any], config: Any, rank: int, folder: Path, port: int) -> None:
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0"}
    os.environ.update(place, WORLD_SIZE="2", RANK=str(rank), LOCAL_RANK=str(rank))
    torch.save(work(config, rank, 2), folder / f"rank-{rank}.pt")
    distributed.destroy_process_group()
