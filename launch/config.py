"""Composes the dataclasses of the packages into one config, filled by a YAML file and `key=value` words.

After `load_config` nobody sees OmegaConf: what comes back are frozen dataclasses.
"""

import argparse
import difflib
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from data.loader import DataConfig
from launch.health import HealthConfig
from vjepa.jepa import JepaConfig, ObjectiveName
from vjepa.loss import LossConfig
from vjepa.masks import LONG_RANGE, SHORT_RANGE, MaskConfig
from vjepa.objectives.dense import DenseConfig
from vjepa.objectives.views import ViewsConfig
from vjepa.optim import OptimConfig
from vjepa.predictor import PredictorConfig
from vjepa.regularise import RegulariserConfig
from vjepa.targets import TeacherConfig
from vjepa.vit import EncoderConfig

Config = TypeVar("Config")


@dataclass(frozen=True)
class RunConfig:
    """Where, how long and on what a run happens."""

    output: str = "runs/pretrain"  # run directory; started again with the same config, it continues
    steps: int = 90_000  # optimiser steps
    total_clips: int = 0  # clips seen over the whole run, instead of steps; 0: steps
    budget: str = ""  # time the run may take, as 10min or 5d, instead of steps: a step is measured first
    batch: int = 3072  # clips of an optimiser step, over all devices and accumulated batches
    batch_per_device: int = 0  # clips a device takes at once; the batches it adds up follow. 0: run.accumulate says it
    accumulate: int = 1  # batches a device adds up before a step, where run.batch_per_device is 0
    start: str = ""  # weights to begin with: run, .ckpt, exported folder, transformers folder or official checkpoint
    start_weights: Literal["", "target", "context", "encoder", "target_encoder", "ema_encoder"] = ""  # which of them
    seed: int = 0  # of weights, masks, order and augmentation
    precision: Literal["bf16", "fp32"] = "bf16"
    compile: bool = False  # torch.compile the transformer blocks: a minute at the start, faster steps on a GPU
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: int = 0  # of a node; 0: as many as torchrun or srun started, else all there are (one process on a CPU)
    nodes: int = 0  # 0: as many as torchrun or srun started, else one
    log_every: int = 10  # optimiser steps
    checkpoint_every: int = 1000  # optimiser steps
    keep: int = 2  # newest checkpoints kept; the one before the newest is for the day the newest is damaged
    keep_every: int = 0  # optimiser steps; checkpoints at multiples of it are kept for good. 0: none
    progress: bool = True  # show a progress bar

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulate", "log_every", "checkpoint_every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"run.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("total_clips", "batch_per_device", "devices", "nodes", "keep_every"):
            if getattr(self, name) < 0:
                raise ValueError(f"run.{name} must not be negative, got {getattr(self, name)}")
        if self.total_clips and self.budget:
            raise ValueError(f"give run.total_clips={self.total_clips} or run.budget={self.budget}, not both")
        if self.total_clips:
            object.__setattr__(self, "steps", max(1, self.total_clips // self.batch))
        if self.keep_every % self.checkpoint_every:
            raise ValueError(
                f"run.keep_every must be a multiple of run.checkpoint_every={self.checkpoint_every}, for only then is "
                f"there a checkpoint to keep; got {self.keep_every}"
            )
        if self.batch_per_device and self.accumulate != 1:
            raise ValueError(
                f"give run.batch_per_device={self.batch_per_device} or run.accumulate={self.accumulate}, not both"
            )


@dataclass(frozen=True)
class TrainConfig:
    """One pretraining run. `encoder.frames` and `encoder.crop` follow `data.frames` and `data.crop`."""

    data: DataConfig = field(default_factory=DataConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    predictor: PredictorConfig = field(default_factory=PredictorConfig)
    objective: ObjectiveName = "masked"  # masked: V-JEPA; dense: V-JEPA 2.1; views: no prediction
    masks: dict[str, MaskConfig] = field(default_factory=dict)  # none: V-JEPA's short_range and long_range
    loss: LossConfig = field(default_factory=LossConfig)
    dense: DenseConfig = field(default_factory=DenseConfig)
    views: ViewsConfig = field(default_factory=ViewsConfig)
    regulariser: RegulariserConfig = field(default_factory=RegulariserConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    health: HealthConfig = field(default_factory=HealthConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        encoder = replace(self.encoder, frames=self.data.frames, crop=self.data.crop)
        object.__setattr__(self, "encoder", encoder)
        masks = self.masks or {"short_range": SHORT_RANGE, "long_range": LONG_RANGE}
        object.__setattr__(self, "masks", dict(masks))

    @property
    def jepa(self) -> JepaConfig:
        """What decides what is learned."""
        return JepaConfig(
            objective=self.objective,
            encoder=self.encoder,
            predictor=self.predictor,
            masks=self.masks,
            loss=self.loss,
            dense=self.dense,
            views=self.views,
            regulariser=self.regulariser,
            teacher=self.teacher,
            optim=self.optim.for_batch(self.run.batch),
            steps=self.run.steps,
            seed=self.run.seed,
        )


def add_config_arguments(parser: argparse.ArgumentParser, folder: str) -> None:
    """What every command with a config takes: the file, the words, and --show."""
    parser.add_argument("config", help=f"YAML file; the ready ones are in {folder}")
    parser.add_argument("words", nargs="*", metavar="key=value", help="what differs from the file, as run.steps=100")
    parser.add_argument("--show", action="store_true", help="print the resolved config and stop")


def read_config(kind: type[Config], arguments: argparse.Namespace) -> Config | None:
    """The config that the arguments ask for; printed, and None, where they ask to see it."""
    config = load_config(kind, arguments.config, arguments.words)
    if arguments.show:
        print(to_yaml(config), end="")
        return None
    return config


def load_config(kind: type[Config], path: str | Path | None, words: list[str]) -> Config:
    """A config of the dataclass `kind` from a YAML file (None: the defaults) and `key=value` words.

    Raises FileNotFoundError for a missing file and ValueError for a key that does not exist (it names the nearest
    one), a value of the wrong type, or one that the dataclass refuses.
    """
    merged = OmegaConf.merge(OmegaConf.structured(kind), _declared(kind))
    if path is not None:
        if not Path(path).is_file():
            raise FileNotFoundError(f"there is no config {path}; the ready ones are in configs/")
        merged = _merge(merged, OmegaConf.load(path), str(path), kind)
    for word in words:
        if "=" not in word:
            raise ValueError(f"{word!r} must have the form key=value, for instance run.steps=1000")
        merged = _merge(merged, OmegaConf.from_dotlist([word]), word, kind)
    return cast(Config, OmegaConf.to_object(merged))


def to_yaml(config: Any) -> str:
    """A config as YAML that `load_config` reads back."""
    return OmegaConf.to_yaml(OmegaConf.create(asdict(config)))


def _merge(base: Any, extra: Any, source: str, kind: type) -> Any:
    try:
        return OmegaConf.merge(base, extra)
    except ConfigKeyError as error:
        wanted = str(error.full_key)
        near = difflib.get_close_matches(wanted, list(config_keys(kind)), n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else f"; the keys are {', '.join(config_keys(kind))}"
        raise ValueError(f"{source}: there is no key {wanted}{hint}") from error
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{source}: {error.full_key or 'the config'}: {reason}") from error


def _declared(kind: type) -> dict[str, Any]:
    """The defaults as they are written in a dataclass and those inside it.

    OmegaConf takes those inside from an instance, whose `__post_init__` has already worked out what follows from them:
    the width of the default size would then stand beside a size named later.
    """
    found: dict[str, Any] = {}
    hints = get_type_hints(kind)
    for entry in fields(kind):
        if is_dataclass(hints[entry.name]):
            found[entry.name] = _declared(cast(type, hints[entry.name]))
        elif entry.default is not MISSING:
            found[entry.name] = entry.default
    return found


def config_keys(kind: type, prefix: str = "") -> list[str]:
    """Every key of a dataclass, dotted; NAME stands for a free name."""
    keys = []
    for name, hint in get_type_hints(kind).items():
        inner = [part for part in get_args(hint) if is_dataclass(part)]
        if is_dataclass(hint):
            keys += config_keys(cast(type, hint), f"{prefix}{name}.")
        elif inner:
            keys += config_keys(cast(type, inner[0]), f"{prefix}{name}.NAME.")
        else:
            keys.append(prefix + name)
    return keys
