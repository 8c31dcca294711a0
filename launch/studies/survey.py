"""What a folder of videos holds, and which config fits it on this machine, with the reasons in words."""

import statistics
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

from data.containers import DecodeError
from data.isolation import probe_isolated
from data.packing.sources import list_sources, read_source
from launch.config import load_config
from launch.config_files import CONFIGS
from launch.training.config import TrainConfig

SMALL = next(file for name in ("small", "tiny_cpu") if (file := CONFIGS / "pretrain" / f"{name}.yaml").is_file())
GPU = CONFIGS / "pretrain" / "single_gpu_vits.yaml"
LOOKED_AT = 12  # videos, spread over the listing, decoded for their size, rate and length
GPU_VIDEOS = 1000  # below this a ViT-S sees the same videos too often within minutes
GPU_GIB = 15.0  # memory that single_gpu_vits.yaml needs
LARGER = 2.0  # videos this many times larger than the crop are scaled down while packing
VAL_FRACTION = 0.2  # of each class, held out for the probe
FEW_VIDEOS = 100  # below this, long videos are cut into pieces: one clip of each at a time would be too few
PIECE = 1.0  # seconds of a piece, if a clip is not longer


@dataclass(frozen=True)
class Survey:
    """Counts over all videos; size, rate and length are medians of those looked at."""

    videos: int
    classes: dict[str, int]  # name -> number of videos; empty: no labels
    side: float  # pixels of the short side
    fps: float
    frames: float
    seconds: float
    unreadable: tuple[str, ...]  # names with the reason, of those looked at

    @property
    def labelled(self) -> bool:
        """Whether a probe is possible: two classes or more, each with a video to train and one to test on."""
        return len(self.classes) > 1 and min(self.classes.values()) > 1

    def describe(self) -> str:
        """Two lines."""
        shown = ", ".join(f"{name} ({count})" for name, count in Counter(self.classes).most_common(6))
        more = f" and {len(self.classes) - 6} more" if len(self.classes) > 6 else ""
        labels = f"{len(self.classes)} classes: {shown}{more}" if self.classes else "no labels (no subfolders)"
        sizes = f"{self.side:.0f} pixels high or wide, {self.fps:.0f} fps, {self.seconds:.1f} s"
        return f"{self.videos} videos, {labels}\nmedian of those looked at: {sizes}"


@dataclass(frozen=True)
class Choice:
    """A config with overrides, and one sentence for every decision."""

    config: Path
    overrides: tuple[str, ...]
    short_side: int  # pixels to scale down to while packing; 0: pack unchanged
    reasons: tuple[str, ...]
    split: float = 0.0  # seconds of the pieces that videos are cut into while packing; 0: not cut


def look_at(folder: str) -> Survey:
    """Count the videos of a folder and decode a few. ValueError if none of them can be read."""
    listing = list_sources(folder)
    step = max(1, len(listing.sources) // LOOKED_AT)
    infos, unreadable = [], []
    for source in listing.sources[::step][:LOOKED_AT]:
        try:
            infos.append(probe_isolated(read_source(Path(source.path))))
        except DecodeError as error:
            unreadable.append(f"{source.name}: {error}")
    if not infos:
        raise ValueError(f"{folder}: none of the {len(unreadable)} videos looked at can be read; {unreadable[0]}")
    return Survey(
        videos=len({source.name for source in listing.sources}),
        classes=dict(Counter(source.label for source in listing.sources if source.label is not None)),
        side=statistics.median(min(info.width, info.height) for info in infos),
        fps=statistics.median(info.fps for info in infos),
        frames=statistics.median(info.frames for info in infos),
        seconds=statistics.median(info.duration for info in infos),
        unreadable=tuple(unreadable),
    )


def choose(survey: Survey, gpu_gib: float | None = None) -> Choice:
    """The config for these videos on this machine. gpu_gib: memory of the GPU, 0 without one; None: look."""
    gib = _gpu_memory() if gpu_gib is None else gpu_gib
    file = GPU if gib >= GPU_GIB and survey.videos >= GPU_VIDEOS else SMALL
    config = load_config(TrainConfig, file, [])
    reasons = [_why(file, survey, gib)]
    overrides = []
    rate = config.data.fps or survey.fps / config.data.stride
    span = (config.data.frames - 1) / rate + 1 / survey.fps
    if span > survey.seconds:
        stride = max(1, int(survey.frames // config.data.frames))
        overrides += [f"data.stride={stride}", "data.fps=null"]
        reasons.append(
            f"data.stride={stride}: a clip of {config.data.frames} frames would last {span:.1f} s, "
            f"the median video {survey.seconds:.1f} s"
        )
    piece = max(PIECE, round(span + 0.05, 1))
    split = piece if survey.videos < FEW_VIDEOS and survey.seconds >= 2 * piece else 0.0
    samples = int(survey.videos * survey.seconds / split) if split else survey.videos
    if split:
        reasons.append(
            f"videos are cut into pieces of {split:g} s while packing, about {samples}: there are only {survey.videos}"
        )
    if config.run.batch > samples * (1 - VAL_FRACTION):
        batch = max(2, int(samples * (1 - VAL_FRACTION)))
        overrides.append(f"run.batch={batch}")
        what = "pieces" if split else "videos"
        reasons.append(f"run.batch={batch}: there are {samples} {what}, the config takes {config.run.batch}")
    crop, short_side = config.data.crop, 0
    if survey.side > LARGER * crop:
        short_side = 2 * round(LARGER * crop / 2)
        reasons.append(
            f"videos are scaled down to {short_side} pixels while packing: training crops have {crop} pixels, "
            "and small videos decode faster"
        )
    return Choice(file, tuple(overrides), short_side, tuple(reasons), split)


def _why(file: Path, survey: Survey, gib: float) -> str:
    device = f"a GPU with {gib:.0f} GiB" if gib else "no GPU"
    if file == GPU:
        return f"{file.stem}: there is {device}, and {survey.videos} videos are enough for a ViT-S"
    short = f"{GPU_VIDEOS} videos and a GPU with {GPU_GIB:.0f} GiB"
    return f"{file.stem}: there is {device} and {survey.videos} videos; {GPU.stem} would need {short}"


def _gpu_memory() -> float:
    return float(torch.cuda.get_device_properties(0).total_memory) / 2**30 if torch.cuda.is_available() else 0.0
