"""Several futures for one past: does the predictor's variable choose between them?

Clips come in twos with the same past and different futures (`generate forks`). A prediction belongs to the future whose
targets are closer. B clips (the two futures of a past are neighbours), K draws, Z dimensions of z, M hidden tokens, W
width. Errors are the mean absolute difference of hidden tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from launch.seeing.imagination import Imagination, closest_mask, latent_energy, split_at
from launch.seeing.scores import interval
from vjepa.encoder import encode_levels
from vjepa.masks import Masks
from vjepa.patches import gather_tokens
from vjepa.pixels import normalise

DRAWS = (1, 2, 4, 8, 16)  # K


@dataclass(frozen=True)
class Futures:
    """Errors of each clip, and what was drawn."""

    best: dict[int, np.ndarray[Any, Any]]  # K -> error of the best of K draws [B]
    mean: np.ndarray[Any, Any]  # error at the prior's mean [B]
    own: np.ndarray[Any, Any]  # error with the z inferred from the clip itself [B]
    other: np.ndarray[Any, Any]  # error with the z of another past with the same branch [B]
    branches: np.ndarray[Any, Any]  # branch of each draw [pasts, K]
    transferred: np.ndarray[Any, Any]  # does z of another past bring its branch along? [B]
    kl: float  # nats

    def plain(self, seed: int = 0) -> dict[str, Any]:
        """Means with 95 % bootstrap intervals over pasts."""
        pasts = {name: values.reshape(-1, 2).mean(1) for name, values in self._errors().items()}
        found: dict[str, Any] = {name: interval(values, seed) for name, values in pasts.items()}
        both = (self.branches.min(1) != self.branches.max(1)).astype(float)
        found["share of the second branch"] = interval(self.branches.mean(1), seed)
        found[f"both branches among {self.branches.shape[1]} draws"] = interval(both, seed)
        found["z of another past brings its branch"] = interval(self.transferred.reshape(-1, 2).mean(1), seed)
        return {**found, "kl": self.kl, "pasts": len(both)}

    def _errors(self) -> dict[str, np.ndarray[Any, Any]]:
        best = {f"best of {draws}": errors for draws, errors in self.best.items()}
        return {"prior mean": self.mean, **best, "own z": self.own, "z of another past, same branch": self.other}


def measure_futures(
    imagination: Imagination, clips: Tensor, seed: int, draws: Sequence[int] = DRAWS, batch: int = 32
) -> Futures:
    """Measure clips uint8 [B, T, H, W, 3], two neighbours for each past; the first half is visible.

    Raises ValueError if the predictor has no variable, or if the clips are not in twos.
    """
    variable = imagination.predictor.variable
    if variable is None:
        raise ValueError(f"{imagination.source} has no latent variable; train with predictor.latent.dims=2")
    if len(clips) % 2 or len(clips) < 4:
        raise ValueError(f"clips must come in twos, at least four of them, got {len(clips)}")
    generator = torch.Generator().manual_seed(seed)
    batch -= batch % 2
    target = torch.cat([hidden_target(imagination, part) for part in clips.split(batch)])
    inferred, kl = zip(*(infer_latent(imagination, part) for part in clips.split(batch)), strict=True)
    own = torch.cat(inferred)
    twin = target.view(-1, 2, *target.shape[1:])

    def error(z: Tensor) -> tuple[Tensor, Tensor]:
        """Errors [B] of z [B, Z], and the branch that each prediction is closer to [B]."""
        parts = zip(clips.split(batch), z.split(batch), strict=True)
        predicted = torch.cat([imagine(imagination, part, inner) for part, inner in parts])
        pairs = twin.repeat_interleave(2, 0)
        distance = torch.stack([latent_energy(predicted, pairs[:, side]).mean(1) for side in (0, 1)], 1)
        side = torch.arange(len(z)) % 2
        return distance.gather(1, side[:, None])[:, 0], distance.argmin(1)

    trials = [
        error(torch.randn(len(clips) // 2, variable.dims, generator=generator).repeat_interleave(2, 0))
        for _ in range(max(draws))
    ]
    errors, branches = torch.stack([one for one, _ in trials], 1), torch.stack([two for _, two in trials], 1)
    moved = own.roll(2, 0)  # of the past before, with the same branch
    other, brought = error(moved)
    return Futures(
        {count: errors[:, :count].amin(1).numpy() for count in draws},
        error(torch.zeros_like(own))[0].numpy(), error(own)[0].numpy(), other.numpy(),
        branches[::2].double().numpy(), (brought == torch.arange(len(clips)) % 2).double().numpy(),
        float(torch.cat(kl).mean()),
    )  # fmt: skip


@torch.no_grad()
def hidden_target(imagination: Imagination, clips: Tensor) -> Tensor:
    """Targets [B, M, W] of the second half of clips uint8 [B, T, H, W, 3]."""
    return gather_tokens(imagination.target(normalise(clips)), _half(imagination, len(clips)).target)


@torch.no_grad()
def imagine(imagination: Imagination, clips: Tensor, z: Tensor) -> Tensor:
    """Predictions [B, M, W] of the second half from the first and z [B, Z]."""
    return imagination.predict(normalise(clips), _half(imagination, len(clips)), closest_mask(imagination), z)


@torch.no_grad()
def infer_latent(imagination: Imagination, clips: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of z [B, Z] inferred from the second half of clips, and its KL divergence from the prior [B]."""
    video, mask = normalise(clips), _half(imagination, len(clips))
    context = torch.cat(encode_levels(imagination.encoder, video, [mask.context], imagination.levels)[0], -1)
    (found,) = imagination.predictor.infer(imagination.target(video), context, [mask], imagination.config.grid)
    return found.mean, found.kl()


def _half(imagination: Imagination, clips: int) -> Masks:
    grid = imagination.config.grid
    return split_at(grid, clips, grid[0] // 2)
