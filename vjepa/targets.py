"""Where the targets come from: a moving average, the encoder itself, a frozen encoder, or the pixels.

B clips, N tokens, D width, R values of a tubelet's pixels.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from vjepa.encoder import Encoder, EncoderConfig, choose_levels, cut_patches

Source = Literal["average", "stop_gradient", "frozen", "pixels"]


@dataclass(frozen=True)
class TeacherConfig:
    """The source of the targets; for `average`, its momentum from start to final, linearly over the run.

    average: a moving average of the context encoder (V-JEPA 1: momentum 0.998 to 1). stop_gradient: the context
    encoder itself, shown everything (SimSiam's idea). frozen: an encoder that does not move (SALT). pixels: the
    normalised pixels of each tubelet (masked autoencoder).
    """

    source: Source = "average"
    momentum: float = 0.998
    final_momentum: float = 1.0
    horizon: tuple[float, float] = (0.0, 0.0)  # instead: updates averaged over, shares of the run; 0: the momenta
    weights: str = ""  # for frozen: run, .ckpt, exported folder, transformers folder or official checkpoint

    def __post_init__(self) -> None:
        if not (0 <= self.momentum <= 1 and 0 <= self.final_momentum <= 1):
            raise ValueError(
                f"teacher.momentum and teacher.final_momentum must lie in [0, 1], "
                f"got {self.momentum} and {self.final_momentum}"
            )
        if min(self.horizon) < 0 or (max(self.horizon) > 0) != (min(self.horizon) > 0):
            raise ValueError(f"teacher.horizon must be two shares above 0, or 0 and 0, got {list(self.horizon)}")
        if bool(self.weights) != (self.source == "frozen"):
            raise ValueError(
                f"teacher.weights must be given with teacher.source=frozen and only there, "
                f"got source {self.source} and weights {self.weights!r}"
            )

    def momenta(self, steps: int) -> tuple[float, float]:
        """Momentum at the start and the end of a run of `steps` optimiser steps; 1 / (1 - momentum) is the horizon."""
        if not any(self.horizon):
            return self.momentum, self.final_momentum
        first, last = (1 - 1 / max(1.0, share * steps) for share in self.horizon)
        return first, last


class Targets(nn.Module, ABC):
    """What is predicted, for all tokens; no gradient reaches it."""

    width: int  # of a target

    @abstractmethod
    def forward(self, video: Tensor, encoder: Encoder) -> Tensor:
        """Targets of video [B, C, T, H, W]; `encoder` is the context encoder -> [B, N, width]."""

    def update(self, encoder: Encoder, momentum: float) -> None:
        """Follow the context encoder after a step; most sources do not."""


class TargetEncoder(Targets):
    """An encoder of its own, in fp32: a moving average of the context encoder (V-JEPA).

    Each level (block) is normalised over D (LayerNorm without scale and shift); several are joined.
    """

    def __init__(self, encoder: Encoder, levels: Sequence[int] = (-1,)) -> None:
        super().__init__()
        self.encoder = deepcopy(encoder).requires_grad_(False)
        self.levels, self.width = tuple(levels), len(levels) * encoder.config.width

    @torch.no_grad()
    def forward(self, video: Tensor, encoder: Encoder) -> Tensor:
        """video [B, C, T, H, W] -> [B, N, levels * D]."""
        return normalised_levels(self.encoder, video, self.levels)

    @torch.no_grad()
    def update(self, encoder: Encoder, momentum: float) -> None:
        """parameter <- momentum * parameter + (1 - momentum) * the encoder's, all of them in one call."""
        mine: list[Tensor] = list(self.encoder.parameters())
        theirs: list[Tensor] = list(encoder.parameters())
        torch._foreach_lerp_(mine, theirs, 1 - momentum)


class FrozenTargets(TargetEncoder):
    """An encoder that stays as it is (SALT, distillation): a moving average of momentum 1."""

    def update(self, encoder: Encoder, momentum: float) -> None:
        """Nothing moves."""


class OwnTargets(Targets):
    """The context encoder's own output, shown everything, without gradient: a moving average of momentum 0."""

    def __init__(self, encoder: EncoderConfig, levels: Sequence[int] = (-1,)) -> None:
        super().__init__()
        self.levels, self.width = tuple(levels), len(levels) * encoder.width

    @torch.no_grad()
    def forward(self, video: Tensor, encoder: Encoder) -> Tensor:
        """video [B, C, T, H, W] -> [B, N, levels * D]."""
        targets = normalised_levels(encoder, video, self.levels)
        torch.clear_autocast_cache()  # weights cast here carry no gradient, and are the ones trained next
        return targets


class PixelTargets(Targets):
    """The pixels of each tubelet, normalised inside it (masked autoencoder)."""

    def __init__(self, encoder: EncoderConfig) -> None:
        super().__init__()
        self.patch, self.tubelet = encoder.patch, encoder.tubelet
        self.width = 3 * encoder.tubelet * encoder.patch**2

    @torch.no_grad()
    def forward(self, video: Tensor, encoder: Encoder) -> Tensor:
        """video [B, C, T, H, W] -> [B, N, R]."""
        patches = cut_patches(video, self.tubelet, self.patch)
        return functional.layer_norm(patches.float(), patches.shape[-1:])


def normalised_levels(encoder: Encoder, video: Tensor, levels: Sequence[int]) -> Tensor:
    """Features of the blocks `levels` for all tokens, each normalised over D, joined: [B, N, levels * D]."""
    features = encoder.layers(video, levels)
    return torch.cat([functional.layer_norm(level.float(), level.shape[-1:]) for level in features], dim=-1)


def make_targets(
    config: TeacherConfig, encoder: Encoder, levels: Sequence[int] = (-1,), frozen: EncoderConfig | None = None
) -> Targets:
    """The targets a config asks for; `frozen` is the architecture of a frozen encoder, its weights come later.

    Raises ValueError where a frozen encoder cuts a clip into other tokens.
    """
    if config.source == "average":
        return TargetEncoder(encoder, levels)
    if config.source == "stop_gradient":
        return OwnTargets(encoder.config, levels)
    if config.source == "pixels":
        return PixelTargets(encoder.config)
    with torch.random.fork_rng(devices=[]):  # what comes after draws the weights it would draw with any source
        teacher = Encoder(frozen) if frozen else encoder
    for name in ("patch", "tubelet"):
        mine, its = getattr(encoder.config, name), getattr(teacher.config, name)
        if mine != its:
            raise ValueError(
                f"teacher.weights: a frozen encoder must cut clips into the same tokens, its {name} is {its} and "
                f"encoder.{name} is {mine}; set encoder.{name}={its} or take another teacher"
            )
    return FrozenTargets(teacher, choose_levels(teacher.config.depth, len(levels)))
