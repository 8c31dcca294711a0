"""The config of everything that determines what is learned, except the data.

`ModelConfig` has the sections that appear in config files and stored runs; `JepaConfig` adds the values set by a run.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from torch import Tensor

from vjepa.batch import is_image
from vjepa.encoder import EncoderConfig
from vjepa.loss import LossConfig
from vjepa.masks import LONG_RANGE, SHORT_RANGE, MaskConfig
from vjepa.optim import OptimConfig
from vjepa.predictor import PredictorConfig
from vjepa.registry import ENCODERS, OBJECTIVES
from vjepa.regularise import RegulariserConfig
from vjepa.targets import TeacherConfig

# Keys for which 0 or "" meant "unset" in configs stored before version 0.2, by section.
UNSET_BEFORE_0_2 = {
    "predictor": ("heads", "mask_tokens"),
    "teacher": ("weights", "horizon"),
    "optim": ("warmup_share", "reference_batch"),
    "masks": ("keep", "predict", "max_keep"),
    "views": ("narrow_crop",),
}


def published_masks() -> dict[str, MaskConfig]:
    """The two masks of V-JEPA 1 and 2."""
    return {"short_range": SHORT_RANGE, "long_range": LONG_RANGE}


@dataclass(frozen=True)
class ModelConfig:
    """The config sections that determine what is learned."""

    objective: str = field(
        default="masked", metadata={"registry": OBJECTIVES}
    )  # a registered objective; its own options stand in the section of its name
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    predictor: PredictorConfig = field(default_factory=PredictorConfig)
    masks: dict[str, MaskConfig] = field(default_factory=published_masks)
    image_masks: dict[str, MaskConfig] = field(default_factory=dict)  # of images; empty: as for clips
    loss: LossConfig = field(default_factory=LossConfig)
    regulariser: RegulariserConfig = field(default_factory=RegulariserConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)


@dataclass(frozen=True)
class JepaConfig(ModelConfig):
    """The config of the training module."""

    options: Any = None  # the objective's options, an instance of its Options class; None: its defaults
    frozen: EncoderConfig | None = None  # architecture of a frozen teacher; its weights are in the module
    steps: int = 90_000  # optimiser steps of the whole run
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.masks:
            raise ValueError("masks must define at least one mask, got none")
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        wanted = self.objective_class.Options
        if not isinstance(self.objective_options, wanted):
            raise ValueError(
                f"options of objective={self.objective} must be {wanted.__name__}, got {type(self.options).__name__}"
            )
        self.objective_class.check(self)

    def masks_of(self, video: Tensor) -> dict[str, MaskConfig]:
        """The masks for clips video [B, C, T, H, W], which are images if T = 1."""
        return self.image_masks if self.image_masks and is_image(video) else self.masks

    @property
    def lengths_vary(self) -> bool:
        """Does the number of context or target tokens differ from batch to batch?"""
        masks = [*self.masks.values(), *self.image_masks.values()]
        return self.objective_class.draws_masks and any(mask.follows_batch for mask in masks)

    @property
    def leaves_unused(self) -> bool:
        """Can a step leave trained parameters without a gradient? DDP must be told."""
        return bool(getattr(ENCODERS.find(self.encoder.kind), "has_modalities", False))

    @property
    def objective_class(self) -> Any:
        """The class registered under the objective's name; ValueError if there is none."""
        return OBJECTIVES.find(self.objective)

    @property
    def objective_options(self) -> Any:
        """The effective options: those given, else the objective's defaults."""
        return self.objective_class.Options() if self.options is None else self.options

    @property
    def follows_device_batch(self) -> bool:
        """Does what is learned depend on the batch size per device, not only on the global batch size?"""
        found: bool = self.objective_class.follows_device_batch(self)
        return found

    def clip_flops(self, clips: int) -> float:
        """FLOPs of a training step per clip, for a batch of `clips` clips; see `Objective.flops`."""
        found: float = self.objective_class.flops(self, clips)
        return found

    def activations(self, clips: int, product: int) -> Any:
        """Memory of a step of `clips` clips; see `Objective.activations`."""
        return self.objective_class.activations(self, clips, product)

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "JepaConfig":
        """Build from the plain data stored in a checkpoint; TypeError for a field unknown to this version."""
        values = dict(stored)
        if "options" not in values:
            values = _from_first_version(values)
        options = from_plain(OBJECTIVES.find(values["objective"]).Options, values.pop("options"))
        found: JepaConfig = from_plain(cls, {**values, "options": options})
        return found


def from_plain(kind: Any, value: Any) -> Any:
    """Convert plain data to the type `kind`, recursively: dicts to dataclasses, lists to tuples."""
    if value is None or kind is Any:
        return value
    arguments = get_args(kind)
    if get_origin(kind) in (Union, UnionType):
        return from_plain(next(part for part in arguments if part is not type(None)), value)
    if isinstance(kind, type) and is_dataclass(kind):
        hints = get_type_hints(kind)
        known = {entry.name for entry in fields(kind)}
        return kind(
            **{name: from_plain(hints[name], inner) if name in known else inner for name, inner in value.items()}
        )
    if get_origin(kind) is dict:
        return {name: from_plain(arguments[1], inner) for name, inner in value.items()}
    if get_origin(kind) is tuple:
        return tuple(value)
    return value


def unset_zeros(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """A section stored by the first version, with None where 0 or "" meant "unset"."""
    keys = UNSET_BEFORE_0_2.get(section, ())
    return {name: None if name in keys and not _is_given(value) else value for name, value in values.items()}


def _from_first_version(stored: dict[str, Any]) -> dict[str, Any]:
    """Convert a config from before version 0.2, which stored the options of every objective under its name."""
    sections = {name: stored.pop(name) for name in list(stored) if name in OBJECTIVES.names()}
    own = sections.get(stored["objective"])
    stored["options"] = None if own is None else unset_zeros(stored["objective"], own)
    for name in ("predictor", "teacher", "optim"):
        stored[name] = unset_zeros(name, stored[name])
    stored["masks"] = {name: convert_mask(mask) for name, mask in stored["masks"].items()}
    return stored


def convert_mask(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a mask from before version 0.2, when `aspect` was height / width."""
    found = unset_zeros("masks", stored)
    if "aspect" in stored:
        low, high = stored["aspect"]
        found["aspect"] = [1 / high, 1 / low]
    return found


def _is_given(value: Any) -> bool:
    return any(value) if isinstance(value, (list, tuple)) else bool(value)
