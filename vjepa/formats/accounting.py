"""Strict loading: every tensor of a file is used or reported as ignored, every parameter of a model is filled."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from vjepa.encoder import Encoder, EncoderConfig, build_encoder
from vjepa.positions import position_table
from vjepa.predictor import Predictor

Built = TypeVar("Built", bound=Encoder | Predictor)
SHOWN = 5  # maximum number of problems listed in an error


@dataclass(frozen=True)
class Pretrained:
    """The weights loaded from a file, and how they were interpreted."""

    encoder: Encoder
    predictor: Predictor | None
    source: str  # the file, and the part of it that was read
    ignored: dict[str, str] = field(default_factory=dict)  # name in the file -> why it is not used
    assumed: tuple[str, ...] = ()  # values that are not in the file

    def __str__(self) -> str:
        """A readable summary of what was loaded, assumed and ignored."""
        config = self.encoder.config
        shape, (t, h, w) = config.shape, config.grid
        lines = [
            f"{self.source}: {config.size} encoder ({shape.depth} blocks of width {shape.width}, {shape.heads} "
            f"heads), {config.positions} positions, {config.frames} frames at {config.crop} pixels = {t}x{h}x{w} tokens"
        ]
        if self.predictor is not None:
            predictor = self.predictor.config
            lines.append(
                f"predictor: {predictor.depth} blocks of width {predictor.width}, {self.predictor.heads} heads"
            )
        lines += [f"assumed: {text}" for text in self.assumed]
        lines += [f"ignored: {name} ({reason})" for name, reason in self.ignored.items()]
        return "\n".join(lines)


def build_empty(make: Callable[[], Built]) -> Built:
    """Build a module to be filled; ours skip random initialisation, which takes longer than reading a file."""
    with torch.device("meta"):
        module: Any = make()
    if not isinstance(module, (Encoder, Predictor)):
        return make()  # a custom module: its constructor must run normally
    module = module.to_empty(device="cpu")
    beside = {name for name, _ in module.named_buffers()} - module.state_dict().keys()
    assert beside == {"position_table"}, beside  # any other buffer would be left uninitialised
    if module.position_table.numel():
        config = module.config if isinstance(module, Encoder) else module.encoder_config
        module.position_table = position_table(config.positions, module.position_table.shape[1], config.grid)
    built: Built = module
    return built


def fill(module: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Load `weights` into `module`: every tensor used, every parameter filled, every shape equal, or ValueError."""
    wanted = module.state_dict()
    problems = [f"missing {name} {list(wanted[name].shape)}" for name in sorted(wanted.keys() - weights.keys())]
    problems += [f"unknown {name} {list(weights[name].shape)}" for name in sorted(weights.keys() - wanted.keys())]
    problems += [
        f"{name} is {list(weights[name].shape)}, the model has {list(wanted[name].shape)}"
        for name in sorted(wanted.keys() & weights.keys())
        if weights[name].shape != wanted[name].shape
    ]
    if problems:
        raise ValueError(f"{source} does not fit the model: {list_some(problems)}")
    for name, tensor in weights.items():
        if not tensor.is_floating_point():
            raise ValueError(
                f"{source}: {name} holds {str(tensor.dtype).removeprefix('torch.')} where floating-point weights are "
                "needed; it is quantised or not a weights file: give the original"
            )
        if not _is_finite(tensor):
            raise ValueError(
                f"{source}: {name} ({tensor.dtype}) holds values that are not finite numbers; it is damaged"
            )
    module.load_state_dict(dict(weights))


def list_some(problems: list[str]) -> str:
    """The first few of a list, and how many more there are."""
    more = f" and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    return "; ".join(problems[:SHOWN]) + more


def resize_encoder(encoder: Encoder, frames: int = 0, crop: int = 0) -> Encoder:
    """The same weights for clips of another length (frames) or size (pixels); 0 keeps the current value.

    Sin-cos tables are recomputed for the new grid; rotary positions are unchanged.
    """
    config = replace(encoder.config, frames=frames or encoder.config.frames, crop=crop or encoder.config.crop)
    resized: Encoder = build_empty(lambda: build_encoder(config))
    resized.load_state_dict(encoder.state_dict())
    return resized.train(encoder.training)


def start_from(pretrained: Pretrained, encoder: Encoder, predictor: Predictor | None = None) -> None:
    """Initialise the encoder (and predictor) of a new run from loaded weights.

    Crop size and number of frames may differ. Raises ValueError if a predictor is needed and the file has none, or if
    the architecture differs; the error names the config keys that would match.
    """
    problems = _differences(pretrained.encoder.config, encoder.config, "encoder", _ENCODER_KEYS)
    if predictor is not None:
        if pretrained.predictor is None:
            raise ValueError(f"{pretrained.source} has no predictor; start with a new one")
        found, wanted = pretrained.predictor, predictor
        problems += _differences(found.config, wanted.config, "predictor", _PREDICTOR_KEYS)
        if found.heads != wanted.heads:
            problems.append(f"the file has predictor.heads={found.heads}, the config {wanted.heads}")
    if problems:
        raise ValueError(f"{pretrained.source} does not fit the config: {'; '.join(problems)}; set them as in the file")
    fill(encoder, pretrained.encoder.state_dict(), pretrained.source)
    if predictor is not None and pretrained.predictor is not None:
        weights = pretrained.predictor.state_dict()
        # If the file has more mask tokens than the run (V-JEPA 2 has 6 to 10), the first ones are used.
        kept = {name for name in predictor.state_dict() if name.startswith("mask_tokens")}
        weights = {name: value for name, value in weights.items() if name in kept or "mask_tokens" not in name}
        spare = {f"mask_tokens.{n}": t for n, t in enumerate(predictor.mask_tokens) if not t.requires_grad}
        weights = {**{name: token.detach() for name, token in spare.items()}, **weights}
        _check_tokens(weights, predictor, pretrained.source)
        fill(predictor, weights, pretrained.source)


def _check_tokens(weights: Mapping[str, Tensor], predictor: Predictor, source: str) -> None:
    """Raise ValueError if a mask would get a token that is exactly 0 although the file's first token is trained."""
    names = (f"mask_tokens.{number}" for number, own in enumerate(predictor.mask_tokens) if own.requires_grad)
    used = [weights[name] for name in names if name in weights]
    if used and used[0].any() and not all(token.any() for token in used):
        raise ValueError(
            f"{source} was trained with one mask token for all masks (V-JEPA 2): the others are exactly 0, and the "
            f"config has one per mask; set predictor.mask_token=clip"
        )


def _is_finite(tensor: Tensor) -> bool:
    low, high = tensor.detach().aminmax()  # a single pass; NaN propagates
    return math.isfinite(low) and math.isfinite(high)


_ENCODER_KEYS = ("width", "depth", "heads", "hidden", "patch", "tubelet", "positions", "rotary_order")
_PREDICTOR_KEYS = ("width", "depth", "hidden")


def _flat(config: Any) -> Any:
    """A config whose effective values can be read as attributes."""
    return SimpleNamespace(**config.describe()) if isinstance(config, EncoderConfig) else config


def _differences(found: Any, wanted: Any, where: str, keys: tuple[str, ...]) -> list[str]:
    """Differences between a file's config and a run's config, named by config key."""
    problems = []
    found, wanted = _flat(found), _flat(wanted)
    for key in keys:
        if key == "rotary_order" and {found.positions, wanted.positions} != {"rotary"}:
            continue
        if key == "hidden":
            same = round(found.width * found.mlp_ratio) == round(wanted.width * wanted.mlp_ratio)
            key = "mlp_ratio"
        else:
            same = getattr(found, key) == getattr(wanted, key)
        if not same:
            problems.append(f"the file has {where}.{key}={getattr(found, key)}, the config {getattr(wanted, key)}")
    return problems
