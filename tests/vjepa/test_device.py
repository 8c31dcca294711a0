"""A step asks the device for nothing: no value is read back, nothing is copied to it. Shown on torch's meta device,
whose tensors have no values to read."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from test_objectives import CHOICES
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vjepa import encoder as vit
from vjepa import predictor
from vjepa.jepa import JEPA, JepaConfig
from vjepa.masks import MaskConfig


@dataclass
class EmptyBatch:
    """Clips without values."""

    clips: Tensor
    position: int = 4


class Crossings(TorchDispatchMode):
    """Notes every operation that copies from one kind of device to another."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(
        self, operation: Any, types: Any, arguments: Sequence[Any] = (), options: dict[str, Any] | None = None
    ) -> Any:
        result = operation(*arguments, **(options or {}))
        tensors = [value for value in (*arguments, result) if isinstance(value, Tensor)]
        if "copy" in str(operation) and len({tensor.device.type for tensor in tensors}) > 1:
            self.found.append(f"{operation} {[list(tensor.shape) for tensor in tensors]}")
        return result


def step_on_meta(config: JepaConfig, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two steps on the meta device, all but the optimiser's own; what crossed between devices in the second."""
    monkeypatch.setattr(vit, "initialise", lambda *arguments: None)  # draws weights and looks at them
    monkeypatch.setattr(predictor, "initialise", lambda *arguments: None)
    monkeypatch.setattr(torch, "autocast", lambda *arguments, **options: nullcontext())  # knows no meta device
    with torch.device("meta"):
        model = JEPA(config)
    model.to("meta")
    optimizer = model.configure_optimizers()
    size = config.encoder.crop
    batch = EmptyBatch(torch.zeros(4, config.encoder.frames, size, size, 3, dtype=torch.uint8, device="meta"))
    for _ in range(2):
        with Crossings() as crossings:
            model.training_step(batch, 0).backward()
            model.on_before_optimizer_step(optimizer)
            model.target_encoder.update(model.context_encoder, 0.9)
    return crossings.found


@pytest.mark.parametrize("name", ["average", "average_vicreg", "stop_gradient", "pixels", "dense"])
def test_a_step_waits_for_nothing(tiny: JepaConfig, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    masks = {kind: replace(mask, keep=0.2, predict=0.4) for kind, mask in tiny.masks.items()}
    assert step_on_meta(replace(tiny, masks=masks, **CHOICES[name]), monkeypatch) == []


def test_lengths_that_follow_the_batch_are_read_back(tiny: JepaConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """As published; and the proof that a read would be noticed."""
    follows = replace(tiny, masks={"blocks": MaskConfig()})
    with pytest.raises(RuntimeError, match=r"item\(\) cannot be called on meta tensors"):
        step_on_meta(follows, monkeypatch)
