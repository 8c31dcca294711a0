"""Features of videos of any length, extracted with a sliding window."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path, PurePath
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from data.decode import DecodeError
from data.files import claim_folder, remove_leftovers, replacing
from data.isolation import probe_isolated, stream_isolated
from data.loading.augment import crop_resize, square_boxes
from data.loading.clips import Indices, Timing, choose_frames
from data.packing.sources import Source, list_sources, read_source
from launch.exchange.encoders import hash_weights
from probes.heads import AttentiveHead
from vjepa.encoder import Encoder, EncoderConfig
from vjepa.encoder21 import join_levels
from vjepa.formats.arrays import ArrayFormat, read_metadata, write_arrays
from vjepa.pixels import normalise

Pool = Literal["none", "mean", "attentive"]
FORMAT = "vjepa-features-1"
TIMEOUT = 600.0  # seconds to probe a video by decoding all of it


@dataclass(frozen=True)
class WindowConfig:
    """The sliding window, in frames of the sampled timeline: every `step`-th frame, or `fps` per second."""

    window: int = 0  # frames per window; 0: as many as the encoder was trained on
    stride: int = 0  # frames from one window to the next; 0: the window's length
    step: int = 1  # take every `step`-th frame of the video
    fps: float = 0.0  # take this many frames per second, instead of `step`
    pool: Pool = "none"  # mean: average the tokens of a window; attentive: pool them with the query of a trained head
    layers: tuple[int, ...] = ()  # blocks to read features from, 0-based, negative from the end; empty: the last
    view: Literal["full", "published"] = "full"  # centre square: the whole short side, or 224/256 of it
    hierarchical: bool = False  # all levels of a V-JEPA 2.1 encoder joined in each token, instead of the last
    batch: int = 4  # windows per batch
    precision: Literal["fp32", "bf16"] = "fp32"

    def __post_init__(self) -> None:
        for name, least in (("window", 0), ("stride", 0), ("step", 1), ("batch", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name} must be at least {least}, got {getattr(self, name)}")
        if self.fps < 0:
            raise ValueError(f"--fps must not be negative, got {self.fps}")
        if self.pool == "attentive" and self.layers:
            raise ValueError("--pool attentive needs the last features, on which its head was trained; drop --layers")
        if self.hierarchical and (self.layers or self.pool == "attentive"):
            raise ValueError("--hierarchical joins all levels; drop --layers and --pool attentive")


@dataclass(frozen=True)
class Video:
    """A video in memory, with the presentation times of its frames."""

    content: bytes
    timing: Timing


def extract_videos(
    videos: Sequence[str],
    encoder: Encoder,
    output: Path,
    config: WindowConfig,
    source: str,
    overwrite: bool = False,
    head: AttentiveHead | None = None,
    to: ArrayFormat = "safetensors",
    rank: int = 0,
    world: int = 1,
) -> tuple[int, int, dict[str, str]]:
    """Write one file per video to `output`; returns the numbers of new and kept files, and the reasons of failures.

    Of several processes, each takes every `world`-th video from `rank` on.

    Raises ValueError if two videos would get the same file, or if an existing file was made with other settings;
    InUseError if another process is writing features to `output`.
    """
    targets = dict(list(name_targets(videos, output, f".{to}").items())[rank::world])
    lock = "features" if world == 1 else f"features-{rank}-of-{world}"
    with claim_folder(output, lock, "give another --output"):
        for folder in {target.parent for target in targets}:
            if world == 1:  # another rank may be writing there
                remove_leftovers(folder)
        return _extract_targets(targets, encoder, config, source, overwrite, head, to)


def _extract_targets(
    targets: Mapping[Path, Source],
    encoder: Encoder,
    config: WindowConfig,
    source: str,
    overwrite: bool,
    head: AttentiveHead | None,
    to: ArrayFormat,
) -> tuple[int, int, dict[str, str]]:
    made, kept, failed = 0, 0, dict[str, str]()
    weights = {"encoder": source, "encoder_sha256": hash_weights(encoder, str(encoder.config))}
    if head is not None:
        weights["head_sha256"] = hash_weights(head)
    for target, entry in tqdm(targets.items(), unit="video", disable=len(targets) < 2):
        metadata = {**_describe(entry, encoder, config), **weights}
        if target.is_file() and not overwrite:
            _check_same(target, metadata)
            kept += 1
            continue
        try:
            found = extract_features(read_video(Path(entry.path)), encoder, config, head)
        except DecodeError as error:
            failed[entry.path] = str(error)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as part:
            write_arrays(found, part, metadata, to)
        made += 1
    return made, kept, failed


@torch.no_grad()
def extract_features(
    video: Video, encoder: Encoder, config: WindowConfig, head: AttentiveHead | None = None
) -> dict[str, Tensor]:
    """`features` [W, N, D] or [W, D] (with layers: one entry each, `layer_3`, ...), `times` [W, 2], `frames` [W, T].

    head: for --pool attentive, trained on this encoder's last features.
    """
    window = config.window or encoder.config.frames
    indices = plan_windows(video.timing, window, config.stride or window, config.step, config.fps)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    encoder = encoder.to(device)
    layers = config.layers or (-1,)
    found: list[list[Tensor]] = []
    windows = show_windows(video, indices, encoder.config.crop, config.view == "published")
    while batch := list(islice(windows, config.batch)):
        clips = torch.stack(batch)
        with torch.autocast(device, torch.bfloat16, enabled=config.precision == "bf16"):
            shown = normalise(clips.to(device))
            tokens = [join_levels(encoder, shown)] if config.hierarchical else encoder.layers(shown, layers)
        found.append([pool_tokens(features.float(), config.pool, head).cpu() for features in tokens])
    whole = [torch.cat(parts).contiguous() for parts in zip(*found, strict=True)]
    names = [f"layer_{layer % len(encoder.blocks)}" for layer in layers] if config.layers else ["features"]
    times = torch.from_numpy(video.timing.shown_at()[indices[:, [0, -1]]]).contiguous()
    return {**dict(zip(names, whole, strict=True)), "times": times, "frames": torch.from_numpy(indices)}


def pool_tokens(tokens: Tensor, pool: Pool, head: AttentiveHead | None = None) -> Tensor:
    """Tokens [W, N, D] unchanged, or one pooled vector per window [W, D]."""
    if head is not None:
        return head.to(tokens.device).pool(tokens)
    return tokens.mean(1) if pool == "mean" else tokens


def plan_windows(timing: Timing, window: int, stride: int, step: int = 1, fps: float = 0.0) -> Indices:
    """Frame indices [W, T] of every window: the first window starts with the video, the last one ends with it.

    The last window may therefore overlap the previous one more than the others do. A video shorter than a window has a
    single window, padded by repeating the last frame.
    """
    if window < 1 or stride < 1:
        raise ValueError(f"window and stride must be at least 1, got {window} and {stride}")
    if fps > 0:
        length = max(1, int(timing.end() * fps + 1e-6))
        line = timing.frames_at(np.arange(max(length, window)) / fps)
    else:
        length = -(-timing.frames // step)
        line = np.minimum(np.arange(max(length, window)) * step, timing.frames - 1).astype(np.int64)
    starts = list(range(0, length - window + 1, stride)) or [0]
    if starts[-1] + window < length:
        starts.append(length - window)
    return np.stack([line[start : start + window] for start in starts])


def show_windows(video: Video, indices: Indices, crop: int, published: bool = False) -> Iterator[Tensor]:
    """Yield the windows with frame indices [W, T], centre-cropped and resized: W times uint8 [T, crop, crop, 3].

    The square is that of the probe's views (`published`: views.spatial=published) and of the exported processor.

    The video is decoded once, in order, and only the frames of the current window are kept, so memory does not grow
    with the length of the video.
    """
    wanted = set(indices.flatten().tolist())
    kept: dict[int, Tensor] = {}
    number = 0
    for index, pixels in stream_isolated(video.content, sorted(wanted)):
        frames = pixels[None]
        kept[index] = crop_resize(frames, square_boxes(frames.shape[1], frames.shape[2], 1, published)[0], crop)[0]
        while number < len(indices) and indices[number, -1] <= index:
            yield torch.stack([kept[frame] for frame in indices[number].tolist()])
            number += 1
            first = indices[number, 0] if number < len(indices) else index
            kept = {frame: square for frame, square in kept.items() if frame >= first}
        if number == len(indices):
            return
    raise DecodeError("too few frames", f"frame {indices[number, -1]} was requested")


def read_video(path: Path) -> Video:
    """A video with its timing; DecodeError if no decoder can read it."""
    content = read_source(path)
    info = probe_isolated(content, TIMEOUT)
    return Video(content, Timing(info.frames, info.fps, info.times))


def open_video(path: Path) -> Video:
    """`read_video` of the one video a user named; ValueError that names it if no decoder can read it."""
    try:
        return read_video(path)
    except DecodeError as error:
        raise ValueError(f"{path}: {error}") from error


def read_clip(path: str, config: EncoderConfig) -> Tensor:
    """A clip from the middle of a video with the length and size the encoder expects: uint8 [1, T, H, W, 3]."""
    video = open_video(Path(path))
    middle = choose_frames(video.timing, config.frames, 1, 0.0, 0.5)
    return next(show_windows(video, middle[None], config.crop)).unsqueeze(0)


def name_targets(videos: Sequence[str], output: Path, suffix: str) -> dict[Path, Source]:
    """The feature file of every video that the sources `videos` list."""
    targets: dict[Path, Source] = {}
    for given in videos:
        for entry in list_sources(given).sources:
            inside = PurePath(*(part for part in PurePath(entry.name).parts if part not in ("/", "..")))
            target = (output / inside).with_suffix(suffix)
            if target in targets and targets[target].path != entry.path:
                target = target.with_name(
                    f"{inside.stem}-{hashlib.sha256(os.fsencode(entry.path)).hexdigest()[:8]}{suffix}"
                )
            targets[target] = entry
    return targets


def _describe(entry: Source, encoder: Encoder, config: WindowConfig) -> dict[str, str]:
    """Metadata of a feature file, all text: its source and settings."""
    settings = asdict(config)
    del settings["batch"]
    if config.view == "full":
        del settings["view"]  # files of earlier versions have no such entry
    if not config.hierarchical:
        del settings["hierarchical"]  # absent from files of earlier versions
    stat = Path(entry.path).stat()
    t, side = (config.window or encoder.config.frames) // encoder.config.tubelet, encoder.config.grid[1]
    return {
        "format": FORMAT,
        "video": entry.path,
        "video_bytes": str(stat.st_size),
        "windows": json.dumps(settings),
        "grid": json.dumps([max(1, t), side, side]),
    }


def _check_same(target: Path, metadata: dict[str, str]) -> None:
    """Raise ValueError if the existing file was made from another video or with other settings."""
    stored = read_metadata(target)
    changed = [name for name, value in metadata.items() if stored.get(name) != value]
    if changed:
        was = ", ".join(f"{name} (was: {stored.get(name)})" for name in changed)
        raise ValueError(f"{target} exists, made with another {was}; choose another --output, or give --overwrite")
