"""Sources of prediction targets: an EMA encoder, the context encoder itself, a frozen encoder, or pixels.

B clips, N tokens, D width, R pixel values per tubelet.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from vjepa.encoder import EncoderConfig, all_levels, build_encoder, levels_of
from vjepa.flops import encoder_flops
from vjepa.loss import in_full_precision
from vjepa.patches import cut_patches
from vjepa.registry import TARGETS


@dataclass(frozen=True)
class TeacherConfig:
    """The source of the targets; for `average`, also the momentum, changed linearly over the run.

    average: exponential moving average (EMA) of the context encoder (V-JEPA 1: momentum 0.998 to 1). stop_gradient: the
    context encoder itself on the unmasked clip (as in SimSiam). frozen: a fixed pretrained encoder (SALT). pixels: the
    normalised pixels of each tubelet (masked autoencoder). distilled: as frozen, but the momenta are those of an EMA
    of the student, which is exported in its place (V-JEPA 2.1).
    """

    source: str = field(default="average", metadata={"registry": TARGETS})  # a registered source of targets
    momentum: float = 0.998
    final_momentum: float = 1.0
    horizon: tuple[float, float] | None = (
        None  # replaces the momenta: averaging horizon at start and end, as fractions of the run
    )
    weights: str | None = (
        None  # of a frozen teacher: run, .ckpt, exported folder, transformers folder or official checkpoint
    )
    which: Literal["target", "context", "encoder", "target_encoder", "ema_encoder"] | None = (
        None  # which encoder of teacher.weights; null: the target of a run, the only one of a folder
    )

    def __post_init__(self) -> None:
        if not (0 <= self.momentum <= 1 and 0 <= self.final_momentum <= 1):
            raise ValueError(
                f"teacher.momentum and teacher.final_momentum must lie in [0, 1], "
                f"got {self.momentum} and {self.final_momentum}"
            )
        if self.horizon is not None and min(self.horizon) <= 0:
            raise ValueError(
                f"teacher.horizon must be null or two fractions of the run above 0, got {list(self.horizon)}"
            )
        if (self.weights is not None) != TARGETS.find(self.source).needs_weights:
            raise ValueError(
                f"teacher.weights is required with teacher.source=frozen or distilled and must be null otherwise, "
                f"got source {self.source} and weights {self.weights!r}"
            )

    def momenta(self, steps: int) -> tuple[float, float]:
        """Momentum at the start and end of a run of `steps` optimiser steps; the horizon is 1 / (1 - momentum)."""
        if self.horizon is None:
            return self.momentum, self.final_momentum
        first, last = (1 - 1 / max(1.0, share * steps) for share in self.horizon)
        return first, last


class Targets(nn.Module, ABC):
    """Computes the targets for all tokens, without gradient."""

    needs_weights: ClassVar[bool] = False  # is teacher.weights required?
    follows_encoder: ClassVar[bool] = False  # do the targets collapse if the context encoder does?
    has_levels: ClassVar[bool] = True  # can it give targets from several levels?
    width: int  # of a target

    @classmethod
    @abstractmethod
    def build(cls, encoder: Any, levels: Sequence[int], frozen: EncoderConfig | None) -> "Targets":
        """Targets from the blocks `levels`; `encoder` is the context encoder, `frozen` a frozen encoder's architecture.

        Raises ValueError if the frozen encoder has another patch or tubelet size.
        """

    @classmethod
    @abstractmethod
    def width_of(cls, encoder: EncoderConfig, levels: int, frozen: EncoderConfig | None) -> int:
        """Width of the targets that `build` would produce."""

    @classmethod
    def flops(cls, encoder: EncoderConfig, frozen: EncoderConfig | None) -> float:
        """FLOPs to compute the targets of one clip with `encoder`'s token grid."""
        return encoder_flops(encoder, math.prod(encoder.grid), embedded=True)

    @abstractmethod
    def forward(self, video: Tensor, encoder: Any) -> Tensor:
        """Targets of video [B, C, T, H, W]; `encoder` is the context encoder -> [B, N, width]."""

    def load_teacher(self, teacher: nn.Module) -> None:
        """Take the weights of `teacher`; ValueError for a source that has none to load."""
        raise ValueError(f"only a frozen teacher has weights to load, these targets are {type(self).__name__}")

    def update(self, encoder: nn.Module, momentum: float) -> None:
        """Update from the context encoder after an optimiser step; a no-op for most sources."""

    @property
    def moving_average(self) -> nn.Module | None:
        """The EMA encoder, or None if there is none."""
        return None


@TARGETS.register("average")
class TargetEncoder(Targets):
    """An EMA copy of the context encoder, in fp32 (V-JEPA).

    Each level (block) is normalised over D (LayerNorm without scale and shift); several levels are concatenated.
    """

    follows_encoder = True

    def __init__(self, encoder: Any, levels: Sequence[int] = (-1,)) -> None:
        super().__init__()
        self.encoder = deepcopy(encoder).requires_grad_(False)
        self.levels, self.width = tuple(levels), len(levels) * encoder.config.shape.width

    @classmethod
    def build(cls, encoder: Any, levels: Sequence[int], frozen: EncoderConfig | None) -> "Targets":
        """See `Targets`."""
        return cls(encoder, levels)

    @classmethod
    def width_of(cls, encoder: EncoderConfig, levels: int, frozen: EncoderConfig | None) -> int:
        """See `Targets`."""
        return levels * encoder.shape.width

    @torch.no_grad()
    def forward(self, video: Tensor, encoder: Any) -> Tensor:
        """video [B, C, T, H, W] -> [B, N, levels * D]."""
        return normalised_levels(self.encoder, video, self.levels)

    @torch.no_grad()
    def update(self, encoder: nn.Module, momentum: float) -> None:
        """See `move_average`."""
        move_average(self.encoder, encoder, momentum)

    @property
    def moving_average(self) -> nn.Module | None:
        """See `Targets`."""
        found: nn.Module = self.encoder
        return found


@TARGETS.register("frozen")
class FrozenTargets(TargetEncoder):
    """A fixed encoder (SALT, distillation), equivalent to an EMA with momentum 1."""

    needs_weights, follows_encoder = True, False

    @classmethod
    def build(cls, encoder: Any, levels: Sequence[int], frozen: EncoderConfig | None) -> "Targets":
        """See `Targets`; the weights are loaded later."""
        if frozen is None:
            raise ValueError(
                "teacher.source=frozen needs the encoder to freeze: pass it as JEPA(config, teacher), or set "
                "teacher.weights for `vjepa train`; otherwise random weights would be frozen"
            )
        for name in ("patch", "tubelet"):
            mine, its = getattr(encoder.config, name), getattr(frozen, name)
            if mine != its:
                raise ValueError(
                    f"teacher.weights: a frozen encoder must have the same token grid, but its {name} is {its} and "
                    f"encoder.{name} is {mine}; set encoder.{name}={its} or use another teacher"
                )
        with torch.random.fork_rng(devices=[]):  # later modules get the same initial weights with any source
            teacher = build_encoder(frozen)
        return cls(teacher, (-1,) if len(levels) == 1 else levels_of(frozen, len(levels)))

    @classmethod
    def width_of(cls, encoder: EncoderConfig, levels: int, frozen: EncoderConfig | None) -> int:
        """See `Targets`."""
        return levels * (frozen or encoder).shape.width

    @classmethod
    def flops(cls, encoder: EncoderConfig, frozen: EncoderConfig | None) -> float:
        """See `Targets`: the frozen encoder runs on this run's clips, whatever it was trained on."""
        return encoder_flops(frozen or encoder, math.prod(encoder.grid), embedded=True)

    def load_teacher(self, teacher: nn.Module) -> None:
        """See `Targets`."""
        self.encoder.load_state_dict(teacher.state_dict())

    def update(self, encoder: nn.Module, momentum: float) -> None:
        """Nothing to update."""

    @property
    def moving_average(self) -> nn.Module | None:
        """See `Targets`."""
        return None


@TARGETS.register("stop_gradient")
class OwnTargets(Targets):
    """The context encoder's own output on the unmasked clip, without gradient: an EMA with momentum 0."""

    follows_encoder = True

    def __init__(self, encoder: EncoderConfig, levels: Sequence[int] = (-1,)) -> None:
        super().__init__()
        self.levels, self.width = tuple(levels), len(levels) * encoder.shape.width

    @classmethod
    def build(cls, encoder: Any, levels: Sequence[int], frozen: EncoderConfig | None) -> "Targets":
        """See `Targets`."""
        return cls(encoder.config, levels)

    @classmethod
    def width_of(cls, encoder: EncoderConfig, levels: int, frozen: EncoderConfig | None) -> int:
        """See `Targets`."""
        return levels * encoder.shape.width

    @torch.no_grad()
    def forward(self, video: Tensor, encoder: Any) -> Tensor:
        """video [B, C, T, H, W] -> [B, N, levels * D]."""
        targets = normalised_levels(encoder, video, self.levels)
        torch.clear_autocast_cache()  # weights cast under no_grad must not be reused in the training pass
        return targets


@TARGETS.register("pixels")
class PixelTargets(Targets):
    """The pixels of each tubelet, normalised per tubelet (masked autoencoder)."""

    has_levels = False

    def __init__(self, encoder: EncoderConfig) -> None:
        super().__init__()
        self.patch, self.tubelet = encoder.patch, encoder.tubelet
        self.width = 3 * encoder.tubelet * encoder.patch**2

    @classmethod
    def build(cls, encoder: Any, levels: Sequence[int], frozen: EncoderConfig | None) -> "Targets":
        """See `Targets`."""
        return cls(encoder.config)

    @classmethod
    def width_of(cls, encoder: EncoderConfig, levels: int, frozen: EncoderConfig | None) -> int:
        """See `Targets`."""
        return 3 * encoder.tubelet * encoder.patch**2

    @classmethod
    def flops(cls, encoder: EncoderConfig, frozen: EncoderConfig | None) -> float:
        """See `Targets`: no matrix products."""
        return 0.0

    @torch.no_grad()
    def forward(self, video: Tensor, encoder: Any) -> Tensor:
        """video [B, C, T, H, W] -> [B, N, R]."""
        patches = cut_patches(video, self.tubelet, self.patch)
        return functional.layer_norm(patches.float(), patches.shape[-1:])


def move_average(average: nn.Module, encoder: nn.Module, momentum: float) -> None:
    """parameter <- momentum * parameter + (1 - momentum) * the encoder's, all of them in one call."""
    mine: list[Tensor] = list(average.parameters())
    theirs: list[Tensor] = list(encoder.parameters())
    torch._foreach_lerp_(mine, theirs, 1 - momentum)


def normalised_levels(encoder: Any, video: Tensor, levels: Sequence[int]) -> Tensor:
    """Features of all tokens after the blocks `levels`, each normalised over D, concatenated: [B, N, levels * D]."""
    features = all_levels(encoder, video, levels)
    return torch.cat([functional.layer_norm(in_full_precision(level), level.shape[-1:]) for level in features], dim=-1)


def make_targets(
    config: TeacherConfig, encoder: Any, levels: Sequence[int] = (-1,), frozen: EncoderConfig | None = None
) -> Targets:
    """Build the targets that the config selects; see `Targets.build`."""
    found: Targets = TARGETS.find(config.source).build(encoder, levels, frozen)
    return found
