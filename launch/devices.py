"""What this machine has to compute on, and how its cores are shared out."""

import os

import torch

from data.loading.loader import DataConfig
from data.parallel import count_cores


def find_accelerator(wanted: str) -> str:
    """`auto` is a GPU where there is one."""
    return ("gpu" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted


def count_devices(accelerator: str) -> int:
    """Devices of this machine; a CPU is one."""
    return torch.cuda.device_count() if find_accelerator(accelerator) == "gpu" else 1


def share_cores(data: DataConfig) -> None:
    """On a CPU leave a core to each loading process: more threads than cores wait for each other instead of working."""
    if not torch.cuda.is_available() and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, count_cores() - data.count_workers()))
