"""The training state in official checkpoints: what the public V-JEPA trainers resume from, beside the weights.

Their optimiser has four groups, in this order: weights of the encoder, weights of the predictor, then biases and other
1-D parameters of each. Parameters are numbered in that order, a module's own before those of its parts. The frozen
position tables of V-JEPA 1 and I-JEPA are numbered too, and have no state.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from vjepa.formats.architecture import PREDICTOR_TABLE, TABLE
from vjepa.formats.meta import PREFIXES, strip_prefix
from vjepa.formats.meta_images import EPOCH as IMAGE_EPOCH
from vjepa.formats.meta_images import PREFIX, is_image_file, to_clips, to_images
from vjepa.formats.pickled import load_pickled
from vjepa.optim import OptimConfig

State = Mapping[str, Tensor]  # step, exp_avg and exp_avg_sq of a parameter
Moments = Mapping[tuple[str, str], State]  # by (part, name)
EPOCH = 300  # steps of an epoch in all published V-JEPA configs
PARTS = ("encoder", "predictor")
# torch.amp.GradScaler's initial state; the public trainers make one for every 16-bit dtype.
SCALER = {"scale": 65536.0, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 2000, "_growth_tracker": 0}


def number_parameters(weights: Mapping[str, Mapping[str, Tensor]]) -> list[list[tuple[str, str]]]:
    """The public optimiser's groups: (part, name) of each parameter; `weights` by part, in the modules' order."""
    groups = []
    for is_small in (False, True):
        for part in PARTS:
            own = [name for name in weights[part] if "." not in name]
            names = own + [name for name in weights[part] if name not in own]
            groups.append([(part, name) for name in names if _is_small(name, weights[part][name]) == is_small])
    return groups


def write_optimiser(
    weights: Mapping[str, Mapping[str, Tensor]], moments: Moments, optim: OptimConfig, lr: float
) -> dict[str, Any]:
    """The entry `opt`: the state dict of the public trainers' AdamW."""
    states: dict[int, dict[str, Tensor]] = {}
    groups: list[dict[str, Any]] = []
    first = 0
    for number, members in enumerate(number_parameters(weights)):
        shared = {
            "lr": lr, "betas": tuple(optim.betas), "eps": optim.eps, "amsgrad": False, "foreach": None,
            "maximize": False, "capturable": False, "differentiable": False, "fused": None,
            "weight_decay": 0.0 if number >= len(PARTS) else optim.weight_decay,
        }  # fmt: skip
        if number >= len(PARTS):
            shared["WD_exclude"] = True
        groups.append({**shared, "params": list(range(first, first + len(members)))})
        for place, member in enumerate(members, first):
            if member in moments:
                states[place] = {name: value.detach().cpu().clone() for name, value in moments[member].items()}
        first += len(members)
    return {"state": states, "param_groups": groups}


@dataclass(frozen=True)
class Training:
    """What a run adds to its exported encoder, so that the public trainers can go on from it."""

    encoder: Mapping[str, Tensor]  # the context encoder's weights
    moments: Moments
    optim: OptimConfig
    steps: int  # optimiser steps done
    batch: int = 0  # clips per optimiser step; 0: unknown


def add_training(content: dict[str, Any], training: Training) -> dict[str, Any]:
    """A checkpoint of `save_meta` with everything that the public V-JEPA trainers read when they resume.

    `encoder` becomes the context encoder. The public trainers resume at the edges of epochs of 300 steps (I-JEPA: 625):
    further steps are in the weights and moments, but their schedules begin at the last edge.
    """
    images = is_image_file(strip_prefix(content["encoder"], "encoder"))
    prefix, moments, own = PREFIXES[0], training.moments, dict(training.encoder)
    if images:
        prefix, moments, own = PREFIX, _translate(moments, to_images), to_images(own)
    tables = {name: value for name, value in content["encoder"].items() if name == prefix + TABLE}
    context = {prefix + name: value.detach().cpu().contiguous() for name, value in own.items()}
    content = {**content, "encoder": {**context, **tables}}
    whole = {part: strip_prefix(content[part], part) for part in PARTS}
    lr = training.optim.lr
    opt = write_optimiser(whole, moments, training.optim, lr)
    epoch = training.steps // (IMAGE_EPOCH if images else EPOCH)
    numbers = {"epoch": epoch, "loss": 0.0, "batch_size": training.batch, "world_size": 1, "lr": lr}
    return {**content, "opt": opt, "scaler": dict(SCALER), **numbers}


def read_training(path: str | Path) -> tuple[dict[str, dict[str, Tensor]], Moments]:
    """Weights by part (encoder, target_encoder, predictor) and Adam's states by (part, name) of an official checkpoint.

    Raises ValueError if it has not all of them, or if `opt` does not match its weights.
    """
    content = load_pickled(Path(path))
    missing = [name for name in ("encoder", "target_encoder", "predictor", "opt") if not content.get(name)]
    if missing:
        raise ValueError(f"{path} is no training checkpoint to go on from: it lacks {', '.join(missing)}")
    whole = {
        name: strip_prefix(content[name], f"{path}[{name!r}]") for name in ("encoder", "target_encoder", "predictor")
    }
    groups = number_parameters(whole)
    stored = content["opt"]["param_groups"]
    sizes, own = [len(group["params"]) for group in stored], [len(group) for group in groups]
    if sizes != own:
        raise ValueError(f"{path}: opt must have parameter groups of {own} parameters, as its weights, got {sizes}")
    states = content["opt"]["state"]
    moments: Moments = {
        member: states[number]
        for members, group in zip(groups, stored, strict=True)
        for member, number in zip(members, group["params"], strict=True)
        if number in states
    }
    faults = [
        f"{part}.{name}" for (part, name), state in moments.items() if state["exp_avg"].shape != whole[part][name].shape
    ]
    if faults:
        raise ValueError(f"{path}: opt does not match the weights: {', '.join(faults[:3])}")
    if is_image_file(whole["encoder"]):
        whole = {part: to_clips(values) for part, values in whole.items()}
        moments = _translate(moments, to_clips)
    return {part: dict(_without_tables(values)) for part, values in whole.items()}, moments


def _is_small(name: str, value: Tensor) -> bool:
    return "bias" in name or value.ndim == 1


def _translate(moments: Moments, names: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]) -> Moments:
    """Adam's states under other names and in other shapes; a step is a number."""
    found: dict[tuple[str, str], dict[str, Tensor]] = {}
    for (part, name), state in moments.items():
        for key, value in state.items():
            shaped = value if key == "step" else next(iter(names({name: value}).values()))
            found.setdefault((part, next(iter(names({name: state["exp_avg"]})))), {})[key] = shaped
    return found


def _without_tables(weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    return ((name, value) for name, value in weights.items() if name not in (TABLE, PREDICTOR_TABLE))
