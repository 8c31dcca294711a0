"""The work of a loader's worker process: stream position -> sample -> frames -> clip -> batch.

A worker makes whole batches, so that batches arrive in order for any number of workers; processes.py runs the workers.
"""

import random
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate, groupby
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.decode import DecodeError, Decoder, Frames
from data.isolation import decode_isolated
from data.loading.arrays import read_arrays, stack_arrays
from data.loading.augment import crop_resize, random_box, square_boxes
from data.loading.batch import Batch, DataConfig, Views
from data.loading.clips import choose_frames, choose_published, segment_centres
from data.loading.groups import CLIPS, Portion
from data.loading.local import ARRAY, draw_views
from data.loading.plan import Lanes, Mixture, Plan, draw_for
from data.loading.processes import Board
from data.loading.randaugment import erase, rand_augment
from data.loading.remote import CACHE, Cache
from data.loading.shards import Sample, ShardReader, choose_decoder, read_label, read_timing
from data.manifest import Manifest

SAMPLES_TRIED = 100  # from the start of a data set, to find one that shows the shapes of its arrays
Decode = Callable[[bytes, Sequence[int], Decoder], Frames]


@dataclass(frozen=True)
class Clip:
    """One sample, ready for a batch."""

    pixels: Tensor  # uint8 [T, H, W, C], in evaluation [V*S, T, H, W, C]
    label: int
    key: str
    arrays: dict[str, Tensor] = field(default_factory=dict)


class ClipReader:
    """Reads, decodes and crops one sample; DecodeError for one that cannot be read or decoded."""

    def __init__(self, config: DataConfig, manifest: Manifest, keep: int | None = None) -> None:
        self.config = config
        cache = Cache(config.cache or CACHE, config.cache_gb, config.allow_pipe, config.outage)
        self.shards = ShardReader(manifest, keep or config.shuffle_shards, cache, whole=config.cache is not None)
        self.decode: Decode = partial(decode_isolated, timeout=config.timeout)  # benchmarks replace it
        self._shapes: dict[str, torch.Size] | None = None

    def train(self, sample: Sample, draws: Sequence[random.Random]) -> list[Clip]:
        """A random clip for each generator in `draws`, all decoded in one call.

        Each generator supplies start, flip and crop box, in this order, and after these the local views.
        """
        config = self.config
        timing = read_timing(sample, config.timeout)
        indices: list[int] = []
        for draw in draws:
            indices += choose_frames(timing, config.frames, config.stride, config.fps or 0.0, draw.random()).tolist()
        frames = self._decode(sample, indices)
        clips = []
        shown = np.split(np.asarray(indices), len(draws))
        for part, rows, draw in zip(np.split(frames, len(draws)), shown, draws, strict=True):
            flip = draw.random() < config.flip
            box = random_box(frames.shape[1], frames.shape[2], config.scale, config.aspect, draw)
            arrays = read_arrays(sample, config.arrays, rows, timing.frames)
            self._check_shapes(sample.key, arrays)
            if config.local is not None:
                arrays[ARRAY] = draw_views(part, config.local, draw)
            classes = len(self.shards.manifest.classes)
            clips.append(
                Clip(crop_resize(part, box, config.crop, flip), read_label(sample, classes), sample.key, arrays)
            )
        return clips

    def _check_shapes(self, key: str, arrays: Mapping[str, Tensor]) -> None:
        """Raise DecodeError if arrays do not have the shapes of the data set's first readable sample."""
        if arrays and self._shapes is None:
            self._shapes = self._first_shapes()
        for name, values in arrays.items():
            expected = (self._shapes or {}).get(name, values.shape)
            if values.shape != expected:
                found = f"{key}: {name} gives {list(values.shape)} for a clip, the first sample {list(expected)}"
                raise DecodeError("malformed array", found)

    def _first_shapes(self) -> dict[str, torch.Size]:
        config = self.config
        for index in range(min(self.shards.manifest.shards[0].samples, SAMPLES_TRIED)):
            try:
                sample = self.shards.read(0, index)
                timing = read_timing(sample, config.timeout)
                rows = choose_frames(timing, config.frames, config.stride, config.fps or 0.0, 0.0)
                arrays = read_arrays(sample, config.arrays, rows, timing.frames)
            except DecodeError:
                continue  # counted when its turn comes
            return {name: values.shape for name, values in arrays.items()}
        return {}

    def evaluate(self, sample: Sample, views: Views, which: int | None = None) -> Clip:
        """All views of a video, or only view `which`; all segments of the first view come first."""
        wanted = range(views.count) if which is None else (which,)
        if views.augmented:
            shown = [self._augment(sample, views, view) for view in wanted]
        else:
            frames = self._decode_segments(sample, views, segment_centres(views.segments))
            boxes = square_boxes(frames.shape[1], frames.shape[2], views.crops, views.spatial == "published")
            shown = [crop_resize(frames, boxes[view], self.config.crop) for view in wanted]
        pixels = torch.stack(shown).unflatten(1, (views.segments, self.config.frames)).flatten(0, 1)
        return Clip(pixels, read_label(sample, len(self.shards.manifest.classes)), sample.key)

    def _augment(self, sample: Sample, views: Views, view: int) -> Tensor:
        """A random view [S*T, H, W, C]: each segment at a random time in its S-th of the video, one crop for all."""
        draw = draw_for(views.seed, view, sample.key)
        starts = [(segment + draw.random()) / views.segments for segment in range(views.segments)]
        flip = draw.random() < views.flip
        frames = self._decode_segments(sample, views, starts, draw)
        if views.augment == "none":
            box = random_box(frames.shape[1], frames.shape[2], views.scale, views.aspect, draw)
            return crop_resize(frames, box, self.config.crop, flip)
        clips = []
        for clip in np.split(frames, views.segments):  # the public code draws anew for every segment
            altered = rand_augment(clip, draw)
            box = random_box(frames.shape[1], frames.shape[2], views.scale, views.aspect, draw)
            clips.append(erase(crop_resize(altered, box, self.config.crop, flip), draw))
        return torch.cat(clips)

    def _decode_segments(
        self, sample: Sample, views: Views, starts: Sequence[float], draw: random.Random | None = None
    ) -> Frames:
        """Frames [S*T, H, W, C] of S clips, decoded in one call; `starts`: their relative times in [0, 1]."""
        config, timing = self.config, read_timing(sample, self.config.timeout)
        count, stride, fps = config.frames, config.stride, config.fps or 0.0
        if views.temporal == "published":
            chosen = choose_published(timing, count, stride, fps, views.segments, draw)
        else:
            chosen = [choose_frames(timing, count, stride, fps, where) for where in starts]
        return self._decode(sample, np.concatenate(chosen).tolist())

    def _decode(self, sample: Sample, indices: list[int]) -> Frames:
        return self.decode(sample.video, indices, choose_decoder(sample, self.config.decoder))


@dataclass(frozen=True)
class Stream:
    """One data set in its own sample order."""

    reader: ClipReader
    plan: Plan
    labelled: bool = True  # False: the streams' labels are not compatible, use -1


@dataclass(frozen=True)
class Source:
    """The data sets of one group of clips, and what a rank reads of them in a step."""

    portion: Portion
    streams: list[Stream]
    mixture: Mixture
    clips_per_video: int = 1
    lanes: Lanes = field(default_factory=Lanes)

    def find(self, video: int) -> tuple[Stream, int, int]:
        """The data set that supplies a video, its lane, and the position in the lane."""
        lane, inner = self.lanes.find(video)
        part, inner = self.mixture.find(inner, lane)
        return self.streams[part], lane, inner


class TrainBatches:
    """Training batches: the number of a batch is the stream position at which its step begins, over all ranks.

    `total`: samples of a step over all ranks. Clips are the batch itself, images a group of it.
    """

    def __init__(self, sources: Sequence[Source], total: int) -> None:
        self.sources, self.total = sources, total

    def numbers(self, start: int) -> Iterator[int]:
        while True:
            yield start
            start += self.total

    def batch_bytes(self) -> int:
        """Bytes of a batch's pixels."""
        configs = [(source.portion.count, source.streams[0].reader.config) for source in self.sources]
        return sum(count * config.clip_bytes() for count, config in configs)

    def make(self, number: int, board: Board) -> Batch:
        skipped: dict[str, list[str]] = {}
        parts = {source.portion.name: self._group(source, number, skipped, board) for source in self.sources}
        clips = parts.pop(CLIPS, None) or _collate([], {}, 0)
        return replace(clips, skipped=skipped, position=number + self.total, groups=parts)

    def _group(self, source: Source, number: int, skipped: dict[str, list[str]], board: Board) -> Batch:
        """This rank's samples of one group, in the step that begins at stream position `number`."""
        portion, clips = source.portion, []
        first = number * portion.per_step // self.total + portion.first  # in the group's own order
        wanted = (divmod(position, source.clips_per_video) for position in range(first, first + portion.count))
        for video, numbered in groupby(wanted, key=itemgetter(0)):
            stream, lane, inner = source.find(video)
            clips += self._clips(stream, lane, inner, [number for _, number in numbered], skipped, board)
        start = number + portion.before + portion.first
        return replace(_collate(clips, {}, number + self.total), first=start, weight=portion.weight)

    def _clips(
        self, stream: Stream, lane: int, position: int, numbers: list[int], skipped: dict[str, list[str]], board: Board
    ) -> list[Clip]:
        """Clips of the video at `position`; if unreadable, of the next readable one in its group, with wrap-around."""
        reader, plan = stream.reader, stream.plan
        group = plan.find(position, lane).group
        offset = position - group.start
        reason = ""
        for step in range(len(group)):
            candidate = group[(offset + step) % len(group)]
            address = plan.find(candidate, lane)
            key = reader.shards.key(address.shard, address.index)
            board.write(key)
            name = key if candidate == position else f"{key}+{offset}"
            names = [f"{name}#{number}" if number else name for number in numbers]
            try:
                sample = reader.shards.read(address.shard, address.index)
                clips = reader.train(sample, [draw_for(plan.seed, address.epoch, name) for name in names])
                return clips if stream.labelled else [replace(clip, label=-1) for clip in clips]
            except DecodeError as error:
                reason = str(error)
                if candidate == position:
                    skipped.setdefault(error.reason, []).extend([key] * len(numbers))
        raise ValueError(
            f"{reader.shards.manifest.folder}: not one of the {len(group)} samples in a group of shards can be "
            f"decoded (the last: {reason}); run `vjepa inspect FOLDER --verify` and pack again"
        )


@dataclass(frozen=True)
class Request:
    """Samples to read from an evaluation set."""

    indices: Sequence[int]  # sample indices, in shard order
    views: Sequence[int] = ()  # one view for each sample; empty: all views


class EvalBatches:
    """Evaluation batches: one for each request, made when a worker is free; requests may be generated lazily."""

    def __init__(self, reader: ClipReader, requests: Iterable[Request], views: Views, batch: int = 1) -> None:
        self.reader, self.views, self.batch = reader, views, batch
        self.requests = requests
        self.starts = [0, *accumulate(shard.samples for shard in reader.shards.manifest.shards)]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "requests": ()}  # only the main process iterates over them

    def numbers(self, start: int) -> Iterator[Request]:
        yield from self.requests

    def batch_bytes(self) -> int:
        """Bytes of a batch with one view of each sample; a request may ask for more."""
        config = self.reader.config
        return self.batch * self.views.segments * config.frames * config.crop**2 * 3

    def make(self, number: Request, board: Board) -> Batch:
        skipped: dict[str, list[str]] = {}
        clips, indices = [], []
        views: Sequence[int | None] = number.views or [None] * len(number.indices)
        for sample, view in zip(number.indices, views, strict=True):
            shard = bisect_right(self.starts, sample) - 1
            index = sample - self.starts[shard]
            key = self.reader.shards.key(shard, index)
            board.write(key)
            try:
                clips.append(self.reader.evaluate(self.reader.shards.read(shard, index), self.views, view))
                indices.append(sample)
            except DecodeError as error:
                skipped.setdefault(error.reason, []).append(key)
        return replace(_collate(clips, skipped, 0), indices=indices)


def _collate(clips: list[Clip], skipped: dict[str, list[str]], position: int) -> Batch:
    pixels = torch.stack([clip.pixels for clip in clips]) if clips else torch.empty(0, dtype=torch.uint8)
    labels = torch.tensor([clip.label for clip in clips], dtype=torch.int64)
    arrays = stack_arrays([clip.arrays for clip in clips])
    return Batch(pixels, labels, [clip.key for clip in clips], skipped, position, arrays=arrays)
