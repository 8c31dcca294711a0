"""Frozen features of a whole set, computed once.

n clips, B of them in a batch, T frames, V views (spatial crops), N tokens of a view (its segments in time joined), D
width.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from data.loader import EvalLoader
from vjepa.pixels import normalise
from vjepa.vit import Encoder


class Extractor(Protocol):
    """Anything that turns clips uint8 [B, T, H, W, 3] into tokens [B, N, D] without learning."""

    def __call__(self, clips: Tensor) -> Tensor: ...


@dataclass
class Features:
    """Tokens of a set, with what is known of each clip."""

    tokens: Tensor  # [n, V, N, D], half precision
    labels: Tensor  # int64 [n]
    keys: list[str]
    missing: dict[str, list[str]] = field(default_factory=dict)  # unreadable samples, by reason

    @property
    def pooled(self) -> Tensor:
        """Mean over the tokens of a view: float32 [n, V, D]."""
        return self.tokens.float().mean(2)


class FrozenEncoder:
    """An encoder's last features; its weights are never touched."""

    def __init__(self, encoder: Encoder, device: str = "cpu", precision: str = "bf16") -> None:
        self.encoder = encoder.eval().requires_grad_(False).to(device)
        self.device, self.half = device, precision == "bf16"

    @torch.no_grad()
    def __call__(self, clips: Tensor) -> Tensor:
        """clips uint8 [B, T, H, W, 3] -> [B, N, D]."""
        with torch.autocast(self.device, torch.bfloat16, enabled=self.half):
            tokens: Tensor = self.encoder(normalise(clips.to(self.device)))
        return tokens


class FirstFrame:
    """Another extractor that is shown the first frame only, standing still: what appearance alone gives away."""

    def __init__(self, extractor: Extractor) -> None:
        self.extractor = extractor

    def __call__(self, clips: Tensor) -> Tensor:
        """clips uint8 [B, T, H, W, 3] -> [B, N, D]."""
        return self.extractor(clips[:, :1].expand_as(clips))


class Pixels:
    """The clip's own pixels, made smaller: what needs no encoder at all."""

    def __init__(self, side: int = 16) -> None:
        self.side = side  # pixels

    def __call__(self, clips: Tensor) -> Tensor:
        """clips uint8 [B, T, H, W, 3] -> one token [B, 1, T*side*side*3], values in [0, 1]."""
        frames = clips.flatten(0, 1).permute(0, 3, 1, 2).float() / 255
        small = functional.interpolate(frames, size=(self.side, self.side), mode="area")
        return small.reshape(len(clips), 1, -1)


def extract(
    extractors: Mapping[str, Extractor], loader: EvalLoader, progress: Callable[[int], None] | None = None
) -> dict[str, Features]:
    """Run extractors over an evaluation loader: every readable sample is decoded once, its views are kept apart.

    The segments in time of a view are joined: N tokens of each. `progress` is told the clips of each batch.
    """
    tokens: dict[str, list[Tensor]] = {name: [] for name in extractors}
    labels, keys = [], []
    for batch in loader:
        shape = (len(batch.keys), loader.views.crops, loader.views.segments)
        for name, extractor in extractors.items():
            apart: Tensor = extractor(batch.clips.flatten(0, 1)).unflatten(0, shape)
            tokens[name].append(apart.flatten(2, 3).to(torch.bfloat16).cpu())
        labels.append(batch.labels)
        keys += batch.keys
        if progress is not None:
            progress(len(batch.keys))
    if not keys:
        raise ValueError(f"no sample of {loader.config.path} was readable; check it with `python -m launch inspect`")
    known = torch.cat(labels)
    return {name: Features(torch.cat(parts), known, keys, loader.missing) for name, parts in tokens.items()}
