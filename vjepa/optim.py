"""AdamW with two parameter groups, and one schedule class for learning rate, weight decay and teacher momentum.

Every scheduled value depends only on the optimiser step, so there is no schedule state to save or lose.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

Shape = Literal["cosine", "linear", "constant"]


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its schedules; the defaults are V-JEPA 1's."""

    lr: float = 6.25e-4  # at the end of the warm-up
    start_lr: float = 2e-4  # at step 0
    final_lr: float = 1e-6  # at the end of the (stretched) schedule
    warmup_steps: int = 12_000
    warmup_share: float | None = None  # fraction of the run; replaces warmup_steps
    reference_batch: int | None = (
        None  # clips the learning rates are given for; they scale with sqrt(run.batch / this). None: no scaling
    )
    lr_shape: Shape = "cosine"  # after the warm-up
    weight_decay: float = 0.04
    final_weight_decay: float = 0.4  # cosine from weight_decay to this
    stretch: float = 1.25  # schedules are made for stretch * steps and cut at the last step
    ahead: int = 0  # update i (from 0) takes lr and weight decay of step i + this; published: 1
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    clip: float = 10.0  # maximum gradient norm, applied to encoder and predictor separately; 0: no clipping
    clip_after_warmup: bool = True  # no clipping during the warm-up
    clip_delay: int = 0  # optimiser steps after the warm-up before clipping begins; V-JEPA 1: one epoch, 300
    spike: float = 20.0  # skip an update whose gradient norm exceeds this multiple of its running average; 0: never

    def __post_init__(self) -> None:
        if self.lr <= 0 or min(self.start_lr, self.final_lr, self.weight_decay, self.clip, self.spike) < 0:
            raise ValueError(
                f"optim.lr must be above 0, and optim.start_lr, final_lr, weight_decay, clip and spike at least 0, "
                f"got {self}"
            )
        if self.stretch < 1:
            raise ValueError(f"optim.stretch must be at least 1, got {self.stretch}")
        if self.ahead < 0 or self.clip_delay < 0:
            raise ValueError(
                f"optim.ahead and optim.clip_delay must be at least 0, got {self.ahead} and {self.clip_delay}"
            )
        share, reference = self.warmup_share or 0.0, 1 if self.reference_batch is None else self.reference_batch
        if self.warmup_steps < 0 or not 0 <= share < 1 or reference < 1:
            raise ValueError(
                f"optim needs warmup_steps >= 0, warmup_share in [0, 1) and reference_batch >= 1, "
                f"got {self.warmup_steps}, {self.warmup_share} and {self.reference_batch}"
            )

    def warmup(self, steps: int) -> int:
        """Warm-up steps of a run of `steps` optimiser steps."""
        return self.warmup_steps if self.warmup_share is None else round(self.warmup_share * steps)

    def clips_at(self, step: int, steps: int) -> bool:
        """Are gradients clipped at optimiser step `step` (0-based) of a run of `steps`?"""
        begin = self.warmup(steps) + self.clip_delay if self.clip_after_warmup else 0
        return self.clip > 0 and step >= begin

    def for_batch(self, clips: int) -> "OptimConfig":
        """A copy with learning rates for steps of `clips` clips: square-root scaling keeps Adam's noise constant."""
        if self.reference_batch is None:
            return self
        factor = math.sqrt(clips / self.reference_batch)
        rates = {name: factor * getattr(self, name) for name in ("lr", "start_lr", "final_lr")}
        return replace(self, reference_batch=None, **rates)


@dataclass(frozen=True)
class Schedule:
    """A value over the steps of a run: linear warm-up from `start` to `peak`, then `shape` to `final`."""

    start: float
    peak: float
    final: float
    warmup: int  # steps
    steps: int  # total length, including the warm-up
    shape: Shape
    ahead: int = 0  # steps

    def __call__(self, step: int) -> float:
        """Value for the update at optimiser step `step` (0-based)."""
        step += self.ahead
        if step < self.warmup:
            return self.start + (self.peak - self.start) * step / self.warmup
        progress = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        if self.shape == "constant":
            return self.peak
        if self.shape == "linear":
            return self.peak + (self.final - self.peak) * progress
        return self.final + (self.peak - self.final) * (1 + math.cos(math.pi * progress)) / 2


def lr_schedule(config: OptimConfig, steps: int) -> Schedule:
    """Learning rate for a run of `steps` optimiser steps (V-JEPA 1)."""
    length = int(config.stretch * steps)
    rates = (config.start_lr, config.lr, config.final_lr)
    return Schedule(*rates, config.warmup(steps), length, config.lr_shape, config.ahead)


def weight_decay_schedule(config: OptimConfig, steps: int) -> Schedule:
    """Weight decay for a run of `steps` optimiser steps: cosine, no warm-up (V-JEPA 1)."""
    start, final = config.weight_decay, config.final_weight_decay
    return Schedule(start, start, final, 0, int(config.stretch * steps), "cosine", config.ahead)


def momentum_schedule(start: float, final: float, steps: int, stretch: float) -> Schedule:
    """Teacher momentum for a run of `steps` optimiser steps: linear, no warm-up (V-JEPA 1)."""
    return Schedule(start, start, final, 0, int(stretch * steps), "linear")


def make_optimizer(config: OptimConfig, *modules: nn.Module) -> torch.optim.AdamW:
    """AdamW over the modules' trainable parameters, without weight decay on biases and 1-D parameters."""
    named = [item for module in modules for item in module.named_parameters() if item[1].requires_grad]
    groups: list[dict[str, Any]] = [{"params": [], "decays": decays} for decays in (False, True)]
    for name, parameter in named:
        groups[parameter.ndim > 1 and not name.endswith("bias")]["params"].append(parameter)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def restore_moments(
    optimizer: torch.optim.Optimizer,
    named: Iterable[tuple[str, nn.Parameter]],
    moments: Mapping[str, Mapping[str, Tensor]],
) -> None:
    """Continue with Adam's state of another run, by parameter name: step, exp_avg and exp_avg_sq each."""
    for name, parameter in named:
        if name in moments:
            state = {key: value.to(parameter.device, torch.float32) for key, value in moments[name].items()}
            optimizer.state[parameter] = {key: value.clone() for key, value in state.items()}


def set_schedule(optimizer: torch.optim.Optimizer, lr: float, weight_decay: float) -> None:
    """Set learning rate and weight decay of the parameter groups."""
    for group in optimizer.param_groups:
        group["lr"] = lr
        group["weight_decay"] = weight_decay if group["decays"] else 0.0
