"""Time this machine: a training step without data, the loader without training, or a probe. Prints one JSON line.

python -m launch bench step configs/pretrain/demo.yaml
python -m launch bench loader configs/pretrain/demo.yaml data.path=runs/demo/shards/train
python -m launch bench probe configs/probe/synthetic.yaml encoder=runs/demo/encoder --repeats 1
"""

import argparse
import itertools
import json
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from data.decode import Decoder, Frames, decode_frames
from data.loader import TrainLoader
from data.workers import Board, TrainBatches
from launch.bench_probe import bench_probe
from launch.config import TrainConfig, load_config
from launch.flops import clip_flops, matrix_rate, median_seconds
from launch.probe import ProbeConfig
from launch.ranks import share_out
from vjepa.jepa import JEPA


@dataclass
class FakeBatch:
    """Clips that cost nothing to make."""

    clips: Tensor
    position: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `bench`."""
    parser.add_argument("what", choices=["step", "loader", "probe"])
    parser.add_argument("config", help="YAML file of a pretraining run, or of a probe")
    parser.add_argument("words", nargs="*", metavar="key=value", help="what differs from the file")
    parser.add_argument(
        "--repeats", type=int, default=10, help="steps or batches timed, after 3 to warm up (default: 10)"
    )


def run(arguments: argparse.Namespace) -> None:
    """Measure and print."""
    if arguments.what == "probe":
        found = bench_probe(load_config(ProbeConfig, arguments.config, arguments.words), arguments.repeats)
    else:
        measure = bench_step if arguments.what == "step" else bench_loader
        found = measure(load_config(TrainConfig, arguments.config, arguments.words), arguments.repeats)
    print(json.dumps({"bench": arguments.what, **environment(), **found}))


def bench_step(config: TrainConfig, repeats: int) -> dict[str, Any]:
    """Median time of a step for the batch of one device, and what share of its matrix rate it uses."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = JEPA(config.jepa).to(device)
    optimizer = model.configure_optimizers()
    size, data = share_out(config.run, 1).clips, config.data
    clips = torch.randint(0, 256, (size, data.frames, data.crop, data.crop, 3), dtype=torch.uint8, device=device)
    half = config.run.precision == "bf16"

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=half, cache_enabled=False):
            loss = model.training_step(FakeBatch(clips, size), 0)
        optimizer.zero_grad()
        loss.backward()
        model.on_before_optimizer_step(optimizer)
        optimizer.step()
        model.target_encoder.update(model.context_encoder, 0.99)

    seconds = median_seconds(step, repeats, device)
    flops, rate = size * clip_flops(config.jepa, size), matrix_rate(torch.bfloat16 if half else torch.float32, device)
    return {
        "encoder": config.encoder.size,
        "tokens": config.encoder.grid,
        "batch": size,
        "precision": config.run.precision,
        "step_ms": round(1000 * seconds, 1),
        "clips_per_s": round(size / seconds, 1),
        "gflop_per_clip": round(flops / size / 1e9, 2),
        "gflop_per_s": round(flops / seconds / 1e9, 1),
        "matrix_gflop_per_s": round(rate / 1e9, 1),
        "utilisation": round(flops / seconds / rate, 3),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if device.type == "cuda" else None,
    }


def bench_loader(config: TrainConfig, repeats: int) -> dict[str, Any]:
    """Clips a second out of the loader, with nobody training, and what a clip costs beside its bare decoding."""
    loader = TrainLoader(config.data, share_out(config.run, 1).clips, config.run.seed)
    batches = iter(loader)
    for _ in range(3):
        next(batches)
    begun = time.perf_counter()
    clips = sum(len(next(batches).keys) for _ in range(repeats))
    seconds = time.perf_counter() - begun
    return {
        "workers": config.data.count_workers(),
        "clips_per_s": round(clips / seconds, 1),
        "ms_per_clip": round(1000 * seconds / clips, 2),
        "skipped": loader.tally.skipped.total(),
        **clip_costs(config, repeats),
    }


def clip_costs(config: TrainConfig, repeats: int) -> dict[str, float]:
    """CPU time of a clip in one process: the whole way from shard to batch, and decoding the same frames alone.

    As in a worker, one thread does it. Batches and their decoding take turns, so that both see the same machine.
    """
    loader = TrainLoader(config.data, share_out(config.run, 1).clips, config.run.seed)
    streams, decodings, board = loader.open_streams(), Decodings(), Board(0)
    for stream in streams:
        stream.reader.decode = decodings.decode
    batches = TrainBatches(streams, loader.mixture, loader.batch, 0, 1, config.data.clips_per_video)
    threads, pipeline, bare = torch.get_num_threads(), 0.0, 0.0
    torch.set_num_threads(1)
    try:
        for number in itertools.islice(batches.numbers(0), repeats + 1):
            decodings.done.clear()
            begun = time.process_time()
            batches.make(number, board)
            made = time.process_time()
            for video, indices, decoder in decodings.done:
                decode_frames(video, indices, decoder)
            if number:  # the first batch opens shards and warms up
                pipeline += made - begun
                bare += time.process_time() - made
    finally:
        torch.set_num_threads(threads)
    clips = loader.batch * repeats
    return {
        "cpu_ms_per_clip": round(1000 * pipeline / clips, 2),
        "decode_cpu_ms_per_clip": round(1000 * bare / clips, 2),
        "cpu_ratio": round(pipeline / bare, 3),
    }


class Decodings:
    """Decodes, and remembers what was asked of it."""

    def __init__(self) -> None:
        self.done: list[tuple[bytes, Sequence[int], Decoder]] = []

    def decode(self, video: bytes, indices: Sequence[int], decoder: Decoder) -> Frames:
        """Frames [T, H, W, C], as decode_frames gives them."""
        frames = decode_frames(video, indices, decoder)
        self.done.append((video, indices, decoder))
        return frames


def environment() -> dict[str, Any]:
    """What the numbers were measured on."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {"device": name, "threads": torch.get_num_threads(), "torch": torch.__version__}
