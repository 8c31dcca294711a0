"""Benchmark this machine: a training step, the loader, the decoders, or a probe. The last line printed is JSON.

vjepa bench step CONFIG                     step time, its parts, share of the device's matmul rate
vjepa bench step CONFIG --plain             alternate with a plain eager step; --figure parts.png
vjepa bench step CONFIG --profile traces    torch's profiler: a trace and a table of operators
vjepa bench step CONFIG --sweep             table of options and batch sizes, the fastest marked
vjepa bench loader CONFIG data.path=SHARDS  clips per second from the loader; --step-ms 350
vjepa bench reads CONFIG --ranks 8,512      opens, reads and bytes of shards, counted for ranks that are not there
vjepa bench decode CONFIG data.path=SHARDS  CPU time per clip for each installed decoder
vjepa bench gpu [CONFIG]                    what to know of a GPU before a long run, in ten minutes; --peer CHECKOUT
vjepa bench probe PROBE_CONFIG              a sweep of heads on one pass of the encoder

`bench step` uses synthetic clips; with data.path, the parts are measured on clips from the loader, and the time spent
waiting for them is included. CONFIG is a file for `train`; ready-made ones are in configs/pretrain/. The measurement
covers one device: its share of run.batch across run.devices and run.nodes, or run.batch_per_device clips.
"""

import argparse
import json
from pathlib import Path

from launch.bench.bench import KINDS, check_options, environment, run_gpu, run_step, run_sweep
from launch.bench.loader import bench_decode, bench_loader
from launch.bench.probe import bench_probe
from launch.bench.reads import bench_reads
from launch.bench.sweep import VARIED
from launch.config import load_config
from launch.probing.probe import ProbeConfig
from launch.training.config import TrainConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `bench`."""
    parser.add_argument("what", choices=KINDS, help="what to measure")
    parser.add_argument("config", nargs="?", help="YAML file of a pretraining run, or of a probe")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides of the file")
    parser.add_argument(
        "--repeats", type=int, default=10, metavar="N", help="steps, batches or clips timed after the warm-up (10)"
    )
    step = parser.add_argument_group("bench step")
    step.add_argument("--plain", action="store_true", help="also measure a plain eager step of the same recipe")
    step.add_argument("--figure", type=Path, metavar="PNG", help="plot where the time goes")
    step.add_argument("--profile", type=Path, metavar="FOLDER", help="write the profiler's trace and operator table")
    step.add_argument("--sweep", action="store_true", help="try options and batch sizes, print a table")
    step.add_argument("--most-clips", type=int, metavar="N", help="with --sweep: largest batch (64 on a CPU)")
    step.add_argument("--vary", metavar="LIST", help=f"with --sweep: which of {','.join(VARIED)} to try (all)")
    gpu = parser.add_argument_group("bench gpu")
    gpu.add_argument("--peer", type=Path, metavar="PATH", help="also time a checkout of facebookresearch/vjepa2")
    loader = parser.add_argument_group("bench loader")
    loader.add_argument("--step-ms", type=float, metavar="X", help="estimate the workers needed for speed/step_ms=X")
    reads = parser.add_argument_group("bench reads")
    reads.add_argument("--ranks", metavar="LIST", help="numbers of GPUs, in nodes of 8 (8,64,512)")
    reads.add_argument("--terabytes", metavar="LIST", help="sizes of the data set (1,20)")
    reads.add_argument("--clip-mb", type=float, metavar="MB", help="size of a sample (1)")


def run(arguments: argparse.Namespace) -> None:
    """Measure and print; ValueError for incompatible options."""
    check_options(arguments)
    repeats = arguments.repeats
    if arguments.what == "gpu":
        found = run_gpu(arguments)
    elif arguments.what == "probe":
        found = bench_probe(load_config(ProbeConfig, arguments.config, arguments.overrides), repeats)
    else:
        config = load_config(TrainConfig, arguments.config, arguments.overrides)
        if arguments.what == "loader":
            found = bench_loader(config, repeats, arguments.step_ms)
        elif arguments.what == "reads":
            found = bench_reads(config, arguments.ranks, arguments.terabytes, arguments.clip_mb or 1.0)
        elif arguments.what == "decode":
            found = bench_decode(config, repeats)
        elif arguments.sweep:
            found = run_sweep(config, arguments)
        else:
            found = run_step(config, arguments)
    print(json.dumps({"bench": arguments.what, **environment(), **found}))
