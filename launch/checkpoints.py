"""Finding and reading the checkpoints of a run."""

from pathlib import Path
from typing import Any

import torch

from vjepa.jepa import JEPA, JepaConfig

LAST = "last.ckpt"


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of a run directory, or None."""
    last = folder / "checkpoints" / LAST
    return last if last.is_file() else None


def read_position(checkpoint: Path) -> int:
    """Samples that the run had consumed when the checkpoint was written."""
    return int(torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["position"])


def load_module(checkpoint: str | Path) -> JEPA:
    """The module stored in a training checkpoint.

    Raises FileNotFoundError where there is none, ValueError where the file is something else.
    """
    path = Path(checkpoint)
    if path.is_dir():
        path = latest_checkpoint(path) or path / "checkpoints" / LAST
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}; give a run directory or a .ckpt file")
    stored: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    if "config" not in stored or "state_dict" not in stored:
        raise ValueError(f"{path} is not a checkpoint of `python -m launch train`: it holds {sorted(stored)[:8]}")
    model = JEPA(JepaConfig.from_dict(stored["config"]))
    model.load_state_dict(stored["state_dict"])
    model.on_load_checkpoint(stored)
    return model
