"""The compute devices of this machine, and how its cores are divided."""

import os

import torch

from data.loading.loader import DataConfig
from data.parallel import count_cores


def find_accelerator(wanted: str) -> str:
    """Resolve `auto`: a GPU if there is one, else the CPU."""
    return ("gpu" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted


def is_compiled(wanted: bool | None, accelerator: str = "auto") -> bool:
    """Resolve `run.compile`: None means on a GPU and not on a CPU."""
    return find_accelerator(accelerator) == "gpu" if wanted is None else wanted


def count_devices(accelerator: str) -> int:
    """Number of devices of this machine; a CPU counts as one."""
    return torch.cuda.device_count() if find_accelerator(accelerator) == "gpu" else 1


def find_device() -> torch.device:
    """The device to measure: a GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def share_cores(data: DataConfig) -> None:
    """On a CPU, leave one core to each loader worker: more threads than cores slow each other down."""
    if not torch.cuda.is_available() and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, count_cores() - data.count_workers()))
