"""A loader's configuration (DataConfig, Views) and its output (Batch).

Shapes: B clips, V views of S segments in time, T frames, H W pixels, C channels; pixels stay uint8 until they are on
the device.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from data.loading.groups import ImageConfig
from data.loading.local import ARRAY, LocalConfig
from data.parallel import count_cores


@dataclass(frozen=True)
class MixPart:
    """One data set of a mixture; a field that is None takes its value from the DataConfig."""

    path: str = ""
    weight: float = 1.0  # share of the samples, relative to the other weights (of image sets: to those of image sets)
    images: bool = False  # an image set: one frame of a sample, in a group of its own (data.images)
    stride: int | None = None
    fps: float | None = None
    scale: tuple[float, float] | None = None
    aspect: tuple[float, float] | None = None
    flip: float | None = None

    def __post_init__(self) -> None:
        if not self.path or self.weight <= 0:
            found = f"path {self.path!r} and weight {self.weight}"
            raise ValueError(f"data.mix: every part needs a path and weight > 0, got {found}")


@dataclass(frozen=True)
class DataConfig:
    """One packed data set, or a weighted mixture of several, and how clips are sampled from it."""

    path: str = ""  # folder or URL of a folder with manifest.json; this or mix is required
    mix: list[MixPart] = field(default_factory=list)  # several data sets, instead of path
    images: ImageConfig | None = None  # how many images beside the clips, and which ranks read them; null: none
    local: LocalConfig | None = None  # small crops of every clip as well (objective=levjepa); null: none
    frames: int = 16  # per clip
    stride: int = 4  # every how many frames of the video one is taken; ignored if fps is set
    fps: float | None = None  # frames per second of a clip; null: use stride
    clips_per_video: int = 1  # in training; decoded in one call, adjacent in the batch
    crop: int = 224  # pixels
    scale: tuple[float, float] = (0.3, 1.0)  # area of a training crop, as a fraction of the frame's
    aspect: tuple[float, float] = (0.75, 1.35)  # width / height of a training crop
    flip: float = 0.5  # probability
    arrays: dict[str, str] = field(default_factory=dict)  # read from sidecars: name -> frames, steps or sample
    workers: int | None = None  # processes; 0: in this process; null: one per core, at most 8
    shuffle_shards: int = 16  # shards whose samples are shuffled together
    lanes: int | None = None  # virtual ranks with shards of their own (docs/scale.md); null: all ranks share all shards
    max_bad_fraction: float = 0.01  # of the samples seen
    timeout: float = 60.0  # seconds to decode one sample
    decoder: Literal["av", "auto", "decord"] = "av"  # auto: decord, and PyAV for what decord cannot read
    cache: str | None = None  # folder for whole shards behind URLs; null: only those not readable by ranges
    cache_gb: float = 100.0  # size of that folder
    outage: float = 600.0  # seconds that a server of shards may be out of reach
    allow_pipe: bool = False  # allow paths "pipe:COMMAND": a shell command whose output is the file

    def __post_init__(self) -> None:
        for name in ("frames", "stride", "crop", "shuffle_shards", "clips_per_video"):
            if getattr(self, name) < 1:
                raise ValueError(f"data.{name} must be at least 1, got {getattr(self, name)}")
        check_crops("data", self.scale, self.aspect, self.flip)
        if self.local is not None and ARRAY in self.arrays:
            raise ValueError(f"data.arrays must not have the name {ARRAY!r}, which is that of the views of data.local")
        if not 0 <= self.max_bad_fraction <= 1:
            raise ValueError(f"data.max_bad_fraction must lie in [0, 1], got {self.max_bad_fraction}")
        if self.fps is not None and self.fps <= 0:
            raise ValueError(f"data.fps must be above 0, or null to use data.stride, got {self.fps}")
        if self.timeout <= 0:
            raise ValueError(f"data.timeout must be above 0, got {self.timeout}")
        if self.outage < 0:
            raise ValueError(f"data.outage must not be negative, got {self.outage}")
        if self.lanes is not None and self.lanes < 1:
            raise ValueError(f"data.lanes must be at least 1, or null, got {self.lanes}")
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"data.workers must be at least 0, or null for one per core, got {self.workers}")

    def parts(self) -> list[tuple["DataConfig", float]]:
        """The data sets of the mixture (or the only one), each as a DataConfig of its own, with their weights.

        An image set has one frame per sample, and the size of images. Raises ValueError for a mixture of image sets
        without data.images, and the other way round.
        """
        if not self.mix and not self.path:
            raise ValueError("data.path is required: the folder of shards that `vjepa pack` wrote")
        if self.mix and self.path:
            raise ValueError(f"give data.path or data.mix, not both; path is {self.path}")
        if not self.mix:
            return [(self, 1.0)]
        self._check_images()
        names = ("path", "stride", "fps", "scale", "aspect", "flip")
        changes = [{name: getattr(part, name) for name in names} for part in self.mix]
        given = [{name: value for name, value in change.items() if value is not None} for change in changes]
        for part, change in zip(self.mix, given, strict=True):
            if part.images and self.images is not None:
                change |= {
                    "frames": 1,
                    "crop": self.images.crop or self.crop,
                    "clips_per_video": 1,
                    "arrays": {},
                    "local": None,
                }
        return [
            (replace(self, mix=[], images=None, **change), part.weight)
            for change, part in zip(given, self.mix, strict=True)
        ]

    def _check_images(self) -> None:
        sets = sum(part.images for part in self.mix)
        if (self.images is None) != (sets == 0):
            raise ValueError(
                f"data.images and parts of data.mix with images: true go together; got data.images={self.images} and "
                f"{sets} image sets"
            )
        if self.images is not None and sets == len(self.mix):
            raise ValueError(
                "data.mix has only image sets; to train on images alone give them without images: true, leave "
                "data.images out, and set data.frames=1"
            )
        if self.images is not None and self.clips_per_video > 1:
            raise ValueError(f"data.images needs data.clips_per_video=1, got {self.clips_per_video}")

    def clip_bytes(self) -> int:
        """Bytes of the pixels of a clip and of its local views."""
        own = self.frames * self.crop**2 * 3
        return own if self.local is None else own + self.local.count_bytes(self.frames)

    def count_workers(self) -> int:
        """Worker processes of one loader on this machine."""
        if self.workers is not None:
            return self.workers
        return min(count_cores(), 8)


@dataclass(frozen=True)
class Views:
    """Evaluation views of a video: segments in time, each cropped in space; fixed, or random with a seed."""

    segments: int = 1
    crops: int = 1  # square crops along the long side
    augmented: int = 0  # number of random views (random times and crop) that replace the fixed ones; 0: none
    scale: tuple[float, float] = (0.08, 1.0)  # area of a random crop, as a fraction of the frame's
    aspect: tuple[float, float] = (0.75, 1.35)  # width / height of a random crop
    flip: float = 0.0  # probability, in random views
    augment: Literal["none", "published"] = "none"  # random views: also V-JEPA's RandAugment and random erasing
    spatial: Literal["full", "published"] = "full"  # with one crop: the whole short side, or the middle 224/256 of it
    temporal: Literal["exact", "published"] = (
        "exact"  # exact rate, segments centred in their parts; published: a whole stride, from the start of each part
    )
    seed: int = 0  # for random views

    def __post_init__(self) -> None:
        if self.segments < 1 or self.crops < 1 or self.augmented < 0:
            raise ValueError(
                "views.segments and views.crops must be at least 1, views.augmented not negative, got "
                f"{self.segments}, {self.crops}, {self.augmented}"
            )
        check_crops("views", self.scale, self.aspect, self.flip)

    @property
    def count(self) -> int:
        """V, the number of views of a video; each view contains all segments."""
        return self.augmented or self.crops


def check_crops(where: str, scale: tuple[float, float], aspect: tuple[float, float], flip: float) -> None:
    """Raise ValueError for impossible settings of random crops and flips; `where` is the config section."""
    for name, (low, high) in (("scale", scale), ("aspect", aspect)):
        if not 0 < low <= high:
            raise ValueError(f"{where}.{name} must satisfy 0 < low <= high, got {(low, high)}")
    if scale[1] > 1:
        raise ValueError(f"{where}.scale must not exceed 1, the whole frame, got {scale}")
    if not 0 <= flip <= 1:
        raise ValueError(f"{where}.flip must lie in [0, 1], got {flip}")


@dataclass
class Batch:
    """Clips with their labels; `skipped` names, by reason, the samples of this batch that could not be read."""

    clips: Tensor  # uint8 [B, T, H, W, C]; in evaluation [B, V*S, T, H, W, C], all segments of the first view first
    labels: Tensor  # int64 [B], -1 if there is none
    keys: list[str]
    skipped: dict[str, list[str]] = field(default_factory=dict)
    position: int = 0  # stream position after this batch, in clips over all ranks
    first: int | None = None  # stream position of the first clip
    weight: float = 1.0  # of these clips' loss, beside that of the groups
    arrays: dict[str, Tensor] = field(default_factory=dict)  # from the sidecars, each [B, ...]
    groups: dict[str, "Batch"] = field(default_factory=dict)  # additional clips of another size or length, by name
    indices: list[int] = field(default_factory=list)  # in evaluation: sample indices, in shard order

    @property
    def samples(self) -> int:
        """Number of clips, including those of the groups."""
        return len(self.keys) + sum(group.samples for group in self.groups.values())

    def pin_memory(self) -> "Batch":
        """The same batch in pinned memory, for asynchronous copies."""
        return self._each(lambda tensor: tensor.pin_memory())

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """The same batch on `device`."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def record_stream(self, stream: Any) -> "Batch":
        """The same batch, whose memory is not used again before `stream` (a CUDA stream) is done with it."""

        def record(tensor: Tensor) -> Tensor:
            tensor.record_stream(stream)
            return tensor

        return self._each(record)

    def share_memory(self) -> "Batch":
        """The same batch, its tensors moved to shared memory."""
        return self._each(lambda tensor: tensor.share_memory_())

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """The same batch with `change` applied to every tensor."""
        return replace(
            self,
            clips=change(self.clips),
            labels=change(self.labels),
            arrays={name: change(values) for name, values in self.arrays.items()},
            groups={name: group._each(change) for name, group in self.groups.items()},
        )
