"""What is asked of a loader (DataConfig, Views) and what comes out of it (Batch).

Shapes: B clips, V views, T frames, H W pixels, C channels; pixels stay uint8 until they are on the device.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from data.parallel import count_cores


@dataclass(frozen=True)
class MixPart:
    """One of several data sets; what is None is as in the rest of the configuration."""

    path: str = ""
    weight: float = 1.0  # share of the samples, relative to the other parts'
    stride: int | None = None
    fps: float | None = None
    scale: tuple[float, float] | None = None
    aspect: tuple[float, float] | None = None
    flip: float | None = None

    def __post_init__(self) -> None:
        if not self.path or self.weight <= 0:
            raise ValueError(f"data.mix needs path and weight > 0 for every part, got {self.path!r} and {self.weight}")


@dataclass(frozen=True)
class DataConfig:
    """One packed data set, or several by weight, and how clips are cut out of it."""

    path: str = ""  # folder or URL of a folder with manifest.json; this or mix is required
    mix: list[MixPart] = field(default_factory=list)  # instead of path
    frames: int = 16
    stride: int = 4  # frames between two of a clip; ignored when fps > 0
    fps: float = 0.0  # wanted frames per second; 0: use stride
    clips_per_video: int = 1  # in training, decoded in one go and next to each other in the batch
    crop: int = 224  # pixels
    scale: tuple[float, float] = (0.3, 1.0)  # area of a training crop, as a fraction of the frame's
    aspect: tuple[float, float] = (0.75, 1.35)  # width / height of a training crop
    flip: float = 0.5  # probability
    workers: int = -1  # processes; 0: in this process; -1: one per core, at most 8
    shuffle_shards: int = 16  # shards whose samples are shuffled together
    max_bad_fraction: float = 0.01  # of the samples seen
    timeout: float = 60.0  # seconds to decode one sample
    cache: str = "~/.cache/video-shards"  # folder for shards behind URLs
    cache_gb: float = 100.0  # size of that folder
    allow_pipe: bool = False  # may a path begin with "pipe:", a command whose output is the file?

    def __post_init__(self) -> None:
        for name in ("frames", "stride", "crop", "shuffle_shards", "clips_per_video"):
            if getattr(self, name) < 1:
                raise ValueError(f"data.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("scale", "aspect"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"data.{name} must satisfy 0 < low <= high, got {(low, high)}")
        if self.scale[1] > 1:
            raise ValueError(f"data.scale must not exceed 1, the whole frame, got {self.scale}")
        for name in ("flip", "max_bad_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"data.{name} must lie in [0, 1], got {getattr(self, name)}")
        if self.fps < 0 or self.timeout <= 0 or self.workers < -1:
            found = f"fps {self.fps}, timeout {self.timeout}, workers {self.workers}"
            raise ValueError(f"data needs fps >= 0, timeout > 0 and workers >= -1, got {found}")

    def parts(self) -> list[tuple["DataConfig", float]]:
        """The data sets to be mixed, each as a configuration of its own, with their weights."""
        if not self.mix and not self.path:
            raise ValueError("data.path is required: the folder of shards that `python -m launch pack` wrote")
        if self.mix and self.path:
            raise ValueError(f"give data.path or data.mix, not both; path is {self.path}")
        if not self.mix:
            return [(self, 1.0)]
        names = ("path", "stride", "fps", "scale", "aspect", "flip")
        changes = [{name: getattr(part, name) for name in names} for part in self.mix]
        given = [{name: value for name, value in change.items() if value is not None} for change in changes]
        return [(replace(self, mix=[], **change), part.weight) for change, part in zip(given, self.mix, strict=True)]

    def count_workers(self) -> int:
        """Worker processes of one loader on this machine."""
        if self.workers >= 0:
            return self.workers
        return min(count_cores(), 8)


@dataclass(frozen=True)
class Views:
    """What evaluation sees of a video: fixed segments in time, each with fixed square crops."""

    segments: int = 1
    crops: int = 1

    def __post_init__(self) -> None:
        if self.segments < 1 or self.crops < 1:
            raise ValueError(f"views.segments and views.crops must be at least 1, got {self.segments}, {self.crops}")


@dataclass
class Batch:
    """Clips with their labels; `skipped` names, by reason, the samples of this batch that could not be read."""

    clips: Tensor  # uint8 [B, T, H, W, C]; in evaluation [B, V, T, H, W, C], V = crop * segments + segment
    labels: Tensor  # int64 [B], -1 where there is none
    keys: list[str]
    skipped: dict[str, list[str]] = field(default_factory=dict)
    position: int = 0  # where training goes on after this batch, in clips over all ranks

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked memory, for copies that do not block."""
        return Batch(self.clips.pin_memory(), self.labels.pin_memory(), self.keys, self.skipped, self.position)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """The same batch on `device`."""
        clips = self.clips.to(device, non_blocking=non_blocking)
        labels = self.labels.to(device, non_blocking=non_blocking)
        return Batch(clips, labels, self.keys, self.skipped, self.position)
