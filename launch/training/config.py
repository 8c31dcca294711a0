"""The config of a pretraining run: RunConfig, HealthConfig, and TrainConfig, which combines all sections."""

from dataclasses import dataclass, field, fields, make_dataclass, replace
from functools import lru_cache
from typing import Any, Literal

from data.loading.loader import DataConfig
from vjepa.attention import AttentionKernel
from vjepa.config import JepaConfig, ModelConfig, published_masks
from vjepa.masks import MaskConfig
from vjepa.precision import Precision
from vjepa.registry import OBJECTIVES


@dataclass(frozen=True)
class RunConfig:
    """Output directory, length, batch size, initial weights and hardware of a run."""

    output: str = "runs/pretrain"  # run directory; started again with the same config, a run resumes
    steps: int = 90_000  # optimiser steps; overridden by run.total_clips and run.budget
    total_clips: int | None = None  # clips seen over the whole run; null: run.steps decides
    budget: str | None = None  # time for the run, such as 10min or 5d: step time is measured first; null: no limit
    batch: int = 3072  # clips per optimiser step, over all devices and accumulated batches
    batch_per_device: int | None = None  # clips per device and forward pass; null: follows from run.accumulate
    accumulate: int = 1  # batches accumulated per step, if run.batch_per_device is null
    start: str | None = None  # initial weights: run, .ckpt, exported or transformers folder, official checkpoint
    start_weights: Literal["target", "context", "encoder", "target_encoder", "ema_encoder", "all"] | None = (
        None  # which weights of run.start to load into both encoders; all: each its own, and Adam's moments (cooldown)
    )
    seed: int = 0  # seed of weights, masks, sample order and augmentation
    precision: Precision = "auto"  # auto: bf16 where the device supports it natively, else fp32; fixed at first start
    plugins: tuple[str, ...] = ()  # modules with your own extensions: dotted names or .py files
    compile: bool | None = (
        None  # torch.compile the transformer blocks: a minute at startup, faster steps; null: on a GPU, not on a CPU
    )
    attention: AttentionKernel = "auto"  # the kernel that computes attention (`vjepa bench gpu`); auto: torch chooses
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: int | None = (
        None  # per node; null: as many as torchrun or srun started, else all of them (one process on a CPU)
    )
    nodes: int | None = None  # null: as many as torchrun or srun started, else one
    loggers: tuple[str, ...] = ("tensorboard",)  # beside the csv: tensorboard, wandb (offline), mlflow (local), yours
    bucket_mb: int = 25  # gradients are averaged over the ranks in parts of this many MiB, while others are computed
    timeout: float = 600.0  # seconds that a rank waits for the others; then the run fails, instead of hanging
    log_every: int = 10  # optimiser steps
    checkpoint_every: int = 1000  # optimiser steps
    keep: int = 2  # number of newest checkpoints to keep; the older one is the fallback if the newest is damaged
    keep_every: int | None = None  # optimiser steps; checkpoints at its multiples are never removed; null: none
    progress: bool = True  # show a progress bar

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulate", "log_every", "checkpoint_every", "keep", "bucket_mb"):
            if getattr(self, name) < 1:
                raise ValueError(f"run.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("total_clips", "batch_per_device", "devices", "nodes", "keep_every"):
            _check_optional("run", name, getattr(self, name))
        if self.timeout <= 0:
            raise ValueError(f"run.timeout must be above 0 seconds, got {self.timeout}")
        if self.total_clips and self.budget:
            raise ValueError(f"give run.total_clips={self.total_clips} or run.budget={self.budget}, not both")
        if (self.keep_every or 0) % self.checkpoint_every:
            raise ValueError(
                f"run.keep_every must be a multiple of run.checkpoint_every={self.checkpoint_every}, the steps at "
                f"which checkpoints are written; got {self.keep_every}"
            )
        if self.batch_per_device and self.accumulate != 1:
            raise ValueError(
                f"give run.batch_per_device={self.batch_per_device} or run.accumulate={self.accumulate}, not both"
            )

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the run: from run.total_clips if given, else run.steps."""
        return self.steps if self.total_clips is None else max(1, self.total_clips // self.batch)


@dataclass(frozen=True)
class HealthConfig:
    """What is monitored during training; gauges and pictures also run after the first and the last step."""

    every: int = 100  # optimiser steps between two readings of the gauges
    min_rank: float = 0.05  # warn of collapse below this effective rank, as a fraction of encoder.width; 0: never
    min_spread: float = 0.05  # warn of collapse below this spread across clips; 0: never
    max_collapsed: int | None = None  # the run stops after more collapsed readings of the gauges in a row; null: never
    max_skips: int = 10  # the run stops after more than this many skipped updates in a row
    pictures_every: int | None = 1000  # optimiser steps between two sets of pictures; null: none
    probe_every: int = 5000  # optimiser steps between two online probes
    probe_train: str | None = None  # folder of labelled shards to train the online probe; null: no probe
    probe_test: str | None = None  # folder of labelled shards to evaluate it
    probe_clips: int | None = 1000  # clips per set, chosen once at random; null: all
    matrix_tflops: float | None = None  # peak matmul rate of a device, for speed/utilisation; null: measure at startup

    def __post_init__(self) -> None:
        for name in ("every", "probe_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"health.{name} must be at least 1, got {getattr(self, name)}")
        if min(self.max_skips, self.max_collapsed or 0) < 0:
            found = f"{self.max_skips} and {self.max_collapsed}"
            raise ValueError(f"health.max_skips and max_collapsed must be at least 0, got {found}")
        for name in ("pictures_every", "probe_clips"):
            _check_optional("health", name, getattr(self, name))
        if self.matrix_tflops is not None and self.matrix_tflops <= 0:
            raise ValueError(f"health.matrix_tflops must be above 0, or null to measure it, got {self.matrix_tflops}")
        for name in ("min_rank", "min_spread"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"health.{name} must lie in [0, 1), got {getattr(self, name)}")
        if bool(self.probe_train) != bool(self.probe_test):
            raise ValueError(
                f"health.probe_train and health.probe_test must be given together, got {self.probe_train!r} and "
                f"{self.probe_test!r}"
            )


@dataclass(frozen=True)
class TrainConfig(ModelConfig):
    """One pretraining run. `encoder.frames` and `encoder.crop` follow `data.frames` and `data.crop`.

    Every registered objective with options adds a section of its own name: see `schema`.
    """

    masks: dict[str, MaskConfig] = field(default_factory=dict)  # empty: V-JEPA's short_range and long_range
    data: DataConfig = field(default_factory=DataConfig)
    health: HealthConfig = field(default_factory=HealthConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        encoder = replace(self.encoder, frames=self.data.frames, crop=self.data.crop)
        object.__setattr__(self, "encoder", encoder)
        object.__setattr__(self, "masks", dict(self.masks or published_masks()))
        for name, part in (("images", self.data.images), ("local", self.data.local)):
            if part is not None and (part.crop or 0) % self.encoder.patch:
                raise ValueError(
                    f"data.{name}.crop must be a multiple of encoder.patch ({self.encoder.patch} pixels), got "
                    f"{part.crop}"
                )
        _ = self.jepa  # says what does not go together

    @property
    def jepa(self) -> JepaConfig:
        """The part of the config that determines what is learned."""
        shared: dict[str, Any] = {entry.name: getattr(self, entry.name) for entry in fields(ModelConfig)}
        shared["optim"] = self.optim.for_batch(self.run.batch)
        options = getattr(self, self.objective, None)
        return JepaConfig(**shared, options=options, steps=self.run.total_steps, seed=self.run.seed)

    @classmethod
    def schema(cls) -> "type[TrainConfig]":
        """This class with a section for each objective registered so far."""
        options = ((name, OBJECTIVES.find(name).Options) for name in OBJECTIVES)
        return _with_sections(tuple((name, kind) for name, kind in options if fields(kind)))


@lru_cache
def _with_sections(options_of: tuple[tuple[str, Any], ...]) -> type[TrainConfig]:
    base, sections = TrainConfig, []
    for name, options in options_of:
        if name in {entry.name for entry in fields(base)}:
            raise ValueError(f"the objective name {name!r} is already a config section; choose another name")
        sections.append((name, options, field(default_factory=options)))
    return make_dataclass(base.__name__, sections, bases=(base,), frozen=True, namespace={"__doc__": base.__doc__})


def _check_optional(section: str, name: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise ValueError(f"{section}.{name} must be at least 1, or null to leave it unset, got {value}")
