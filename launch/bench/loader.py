"""What it costs to bring clips from the shards to a batch: the whole loader, and each decoder by itself."""

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from data.decode import HAS_DECORD, DecodeError, Decoder, Frames, decode_frames
from data.loading.batch import Batch
from data.loading.loader import TrainLoader
from data.loading.processes import Board
from data.loading.workers import TrainBatches
from launch.training.config import TrainConfig
from launch.training.ranks import share_of_device

STORED = 2  # batches of each worker that lie ready, see torch's prefetch_factor
Order = tuple[bytes, Sequence[int], Decoder]  # a video, the frames wanted of it, and who shall decode it


def bench_loader(config: TrainConfig, repeats: int, step_ms: float | None = None) -> dict[str, Any]:
    """Clips a second out of the loader, with nobody training, and what a clip costs beside its bare decoding.

    With `step_ms` also the number of workers, each on a core of its own, that would feed optimiser steps of that time.
    """
    share, workers = share_of_device(config.run), config.data.count_workers()
    loader = TrainLoader(config.data, share.clips, config.run.seed)
    batches = iter(loader)
    empty_store(batches, workers, least=3)
    rounds = max(math.ceil(repeats / max(1, workers)), 2 * STORED)  # workers deliver in turn
    begun = time.perf_counter()
    clips = sum(len(next(batches).keys) for _ in range(rounds * workers or repeats))
    seconds = time.perf_counter() - begun
    batches.close()  # its workers would disturb what comes
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


def empty_store(batches: Iterator[Batch], workers: int, least: int = 0) -> None:
    """Take what the workers have ready: it cost its time before anything was measured."""
    for _ in range(max(least, STORED * workers)):
        next(batches)


def clip_costs(config: TrainConfig, repeats: int) -> dict[str, float]:
    """CPU time of a clip in one process: the whole way from shard to batch, and decoding the same frames alone.

    As in a worker, one thread does it. Batches and their decoding take turns, so that both see the same machine.
    """
    reader = Reader(config, share_of_device(config.run).clips)
    threads, pipeline, bare = torch.get_num_threads(), 0.0, 0.0
    torch.set_num_threads(1)
    try:
        for number in range(repeats + 1):
            begun = time.process_time()
            orders = reader.read()
            made = time.process_time()
            for video, indices, decoder in orders:
                decode_frames(video, indices, decoder)
            if number:  # the first batch opens shards and warms up
                pipeline += made - begun
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
    """CPU milliseconds of a clip for each decoder that is installed, on the same clips, with one thread.

    The clips of a video are decoded at once, as in training; `clips` is rounded up to whole videos.
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
                except DecodeError:  # counted; the loader would take the other decoder
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
    """Makes batches of training clips in this process, and says what was decoded for each."""

    def __init__(self, config: TrainConfig, clips: int) -> None:
        loader = TrainLoader(config.data, clips, config.run.seed)
        streams = loader.open_streams()
        for stream in streams:
            stream.reader.decode = self._decode
        self.clips = clips
        self.batches = TrainBatches(streams, loader.mixture, clips, 0, 1, config.data.clips_per_video)
        self.numbers, self.board = self.batches.numbers(0), Board(0)
        self.orders: list[Order] = []

    def read(self) -> list[Order]:
        """Make the next batch; what was decoded for it."""
        self.orders.clear()
        self.batches.make(next(self.numbers), self.board)
        return self.orders

    def _decode(self, video: bytes, indices: Sequence[int], decoder: Decoder) -> Frames:
        frames = decode_frames(video, indices, decoder)
        self.orders.append((video, indices, decoder))
        return frames
