"""Resume an interrupted evaluation: finished heads are saved in files, so is the state of the one being trained.

The folder's name is a hash of config, samples and features, so results of another evaluation are never reused.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from data.files import replacing
from probes.features import Features
from probes.heads import AttentiveHead, LinearHead
from probes.linear import Fitted


class FinishedHeads:
    """The folder of one evaluation's finished heads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def open(
        cls, folder: Path, config: Any, train: Mapping[str, Features], test: Mapping[str, Features]
    ) -> "FinishedHeads":
        """The folder for the evaluation with this config (a dataclass) and these features."""
        state = hashlib.sha256(json.dumps(asdict(config)).encode())
        for features in (*train.values(), *test.values()):
            state.update("\n".join(features.keys).encode())
            state.update(f"{features.description} {features.shape} {features.views}".encode())
            for tensor in (features.labels, features.pooled):
                state.update(tensor.contiguous().numpy().data)
        return cls(folder / state.hexdigest()[:16])

    def run(self, task: str, work: Callable[[Path], Fitted]) -> Fitted:
        """The result of `work`, read from disk if `task` was finished before; `work` gets a folder for its state."""
        name = hashlib.sha256(task.encode()).hexdigest()[:16]
        file, half = self.folder / f"{name}.pt", self.folder / name
        if file.is_file():
            return _read(torch.load(file, weights_only=True))
        fitted = work(half)
        self.folder.mkdir(parents=True, exist_ok=True)
        with replacing(file) as part:
            torch.save(_plain(fitted), part)
        shutil.rmtree(half, ignore_errors=True)
        return fitted


def _plain(fitted: Fitted) -> dict[str, Any]:
    head = fitted.head
    shape: dict[str, Any] = {}
    if head is not None:
        shape = {"width": head.linear.in_features, "classes": head.linear.out_features}
    if isinstance(head, AttentiveHead):
        shape |= {"heads": head.heads, "depth": head.depth, "style": head.style}
    return {
        "probabilities": fitted.probabilities,
        "choice": fitted.choice,
        "repeats": list(fitted.repeats),
        "shape": shape,
        "head": dict(head.state_dict()) if head is not None else {},
    }


def _read(state: dict[str, Any]) -> Fitted:
    shape, head = state["shape"], None
    if shape:
        head = AttentiveHead(**shape) if "heads" in shape else LinearHead(**shape)
        head.load_state_dict(state["head"])
        head.eval().requires_grad_(False)
    return Fitted(state["probabilities"], state["choice"], head, tuple(state["repeats"]))
