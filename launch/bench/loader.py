"""The cost of loading clips from shards into a batch: the whole loader, and each decoder on its own."""

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from data.decode import HAS_DECORD, DecodeError, Decoder, Frames, decode_frames
from data.isolation import decode_isolated, helper_seconds
from data.loading.batch import Batch
from data.loading.loader import TrainLoader
from data.loading.processes import Board
from data.loading.workers import TrainBatches
from launch.training.config import TrainConfig
from launch.training.ranks import share_of_device

PREFETCHED = 2  # batches prefetched per worker: torch's prefetch_factor
DecodeCall = tuple[bytes, Sequence[int], Decoder]  # a video, the frame indices, the decoder


def bench_loader(config: TrainConfig, repeats: int, step_ms: float | None = None) -> dict[str, Any]:
    """Clips per second from the loader without training, and the cost of a clip compared with bare decoding.

    With `step_ms`, also the number of workers, each with its own core, that would keep up with steps of that duration.
    """
    share, workers = share_of_device(config.run), config.data.count_workers()
    loader = TrainLoader(config.data, share.clips, config.run.seed)
    batches = iter(loader)
    drain_prefetched(batches, workers, least=3)
    rounds = max(math.ceil(repeats / max(1, workers)), 2 * PREFETCHED)  # workers deliver in turn
    begun = time.perf_counter()
    clips = sum(len(next(batches).keys) for _ in range(rounds * workers or repeats))
    seconds = time.perf_counter() - begun
    batches.close()  # its workers would disturb the next measurement
    costs = clip_costs(config, repeats)
    found = {
        "workers": workers,
        "batch": share.clips,
        "clips_per_s": round(clips / seconds, 1),
        "ms_per_clip": round(1000 * seconds / clips, 2),
        "skipped": loader.tally.skipped.total(),
        **costs,
    }
    if step_ms is not None:
        needed = costs["cpu_ms_per_clip"] * share.clips * share.batches / step_ms
        found |= {"step_ms": step_ms, "workers_needed": math.ceil(needed)}
    return found


def drain_prefetched(batches: Iterator[Batch], workers: int, least: int = 0) -> None:
    """Take the prefetched batches: they were made before the measurement started."""
    for _ in range(max(least, PREFETCHED * workers)):
        next(batches)


def clip_costs(config: TrainConfig, repeats: int) -> dict[str, float]:
    """CPU time per clip: the whole pipeline from shard to batch, and bare decoding of the same frames in this process.

    Single-threaded, as in a worker. The pipeline decodes in the helper process, as training does; its time counts. The
    two alternate batch by batch, so that both see the same machine conditions.
    """
    reader = Reader(config, share_of_device(config.run).clips)
    threads, pipeline, bare = torch.get_num_threads(), 0.0, 0.0
    torch.set_num_threads(1)
    try:
        for number in range(repeats + 1):
            begun = time.process_time() + helper_seconds()
            calls = reader.read()
            pipeline_end, made = time.process_time() + helper_seconds(), time.process_time()
            for video, indices, decoder in calls:
                decode_frames(video, indices, decoder)
            if number:  # the first batch opens shards, starts the helper and warms up
                pipeline += pipeline_end - begun
                bare += time.process_time() - made
    finally:
        torch.set_num_threads(threads)
    clips = reader.clips * repeats
    return {
        "cpu_ms_per_clip": round(1000 * pipeline / clips, 2),
        "decode_cpu_ms_per_clip": round(1000 * bare / clips, 2),
        "cpu_ratio": round(pipeline / bare, 3),
    }


def bench_decode(config: TrainConfig, clips: int) -> dict[str, Any]:
    """CPU milliseconds per clip for each installed decoder, on the same clips, single-threaded.

    All clips of a video are decoded together, as in training; `clips` is rounded up to whole videos.
    """
    together = config.data.clips_per_video
    reader, videos = Reader(config, together), -(-clips // together)
    names: list[Decoder] = ["decord", "av"] if HAS_DECORD else ["av"]
    seconds, decoded, failed = (dict.fromkeys(names, start) for start in (0.0, 0, 0))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for number in range(videos + 1):
            for (video, indices, _), name in itertools.product(reader.read(), names):
                begun = time.process_time()
                try:
                    decode_frames(video, indices, name)
                except DecodeError:  # counted; the loader would fall back to the other decoder
                    failed[name] += number > 0
                    continue
                if number:  # the first one warms up
                    seconds[name] += time.process_time() - begun
                    decoded[name] += 1
    finally:
        torch.set_num_threads(threads)
    costs = {
        name: round(1000 * seconds[name] / decoded[name] / together, 2) if decoded[name] else None for name in names
    }
    return {
        "videos": videos,
        "clips": videos * together,
        "frames": config.data.frames,
        "stride": config.data.stride,
        "fps": config.data.fps,
        "cpu_ms_per_clip": costs,
        "failed": failed,
    }


class Reader:
    """Makes batches of training clips in this process, and records the decoder calls of each."""

    def __init__(self, config: TrainConfig, clips: int) -> None:
        loader = TrainLoader(config.data, clips, config.run.seed)
        sources = loader.open_sources()
        for source in sources:
            for stream in source.streams:
                stream.reader.decode = self._decode
        self.clips = clips
        self.batches = TrainBatches(sources, clips)
        self.numbers, self.board = self.batches.numbers(0), Board(0)
        self.calls: list[DecodeCall] = []

    def read(self) -> list[DecodeCall]:
        """Make the next batch; returns the decoder calls it took."""
        self.calls.clear()
        self.batches.make(next(self.numbers), self.board)
        return self.calls

    def _decode(self, video: bytes, indices: Sequence[int], decoder: Decoder) -> Frames:
        frames = decode_isolated(video, indices, decoder)
        self.calls.append((video, indices, decoder))
        return frames
