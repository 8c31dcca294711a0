"""Measure this machine: a training step, the loader, the decoders, or a probe. The last line printed is JSON.

python -m launch bench step CONFIG                     time of a step, its parts, share of the device's matrix rate
python -m launch bench step CONFIG --plain             the same beside a plain step, in turn; --figure parts.png
python -m launch bench step CONFIG --profile traces    torch's profiler: a trace and a table of operators
python -m launch bench step CONFIG --sweep             the fastest options and batch for this device, as a table
python -m launch bench loader CONFIG data.path=SHARDS  clips a second out of the loader; --step-ms 350
python -m launch bench decode CONFIG data.path=SHARDS  CPU time of a clip for each decoder that is installed
python -m launch bench probe PROBE_CONFIG              a sweep of heads on one pass of the encoder

`bench step` invents its clips. With data.path the parts are measured on those of the loader, and the wait for them with
them. CONFIG is a file as `train` takes it; the ready ones are in configs/pretrain/. Measured is what one device does:
its part of run.batch among run.devices and run.nodes, or run.batch_per_device clips.
"""

import argparse
import json
from pathlib import Path

from launch.bench.bench import KINDS, check_options, environment, run_step, run_sweep
from launch.bench.loader import bench_decode, bench_loader
from launch.bench.probe import bench_probe
from launch.bench.sweep import VARIED
from launch.config import load_config
from launch.probing.probe import ProbeConfig
from launch.training.config import TrainConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `bench`."""
    parser.add_argument("what", choices=KINDS, help="what to measure")
    parser.add_argument("config", help="YAML file of a pretraining run, or of a probe")
    parser.add_argument("words", nargs="*", metavar="key=value", help="what differs from the file")
    parser.add_argument(
        "--repeats", type=int, default=10, metavar="N", help="steps, batches or clips timed after the warm-up (10)"
    )
    step = parser.add_argument_group("bench step")
    step.add_argument("--plain", action="store_true", help="measure a plain eager step of the same recipe beside it")
    step.add_argument("--figure", type=Path, metavar="PNG", help="draw where the time goes")
    step.add_argument("--profile", type=Path, metavar="FOLDER", help="write a profiler's trace and its operators there")
    step.add_argument("--sweep", action="store_true", help="try options and batches, print a table")
    step.add_argument("--most-clips", type=int, metavar="N", help="with --sweep: largest batch (64 on a CPU)")
    step.add_argument("--vary", metavar="LIST", help=f"with --sweep: what of {','.join(VARIED)} is tried (all)")
    loader = parser.add_argument_group("bench loader")
    loader.add_argument("--step-ms", type=float, metavar="X", help="say how many workers would feed speed/step_ms=X")


def run(arguments: argparse.Namespace) -> None:
    """Measure and print; ValueError for options that do not go together."""
    check_options(arguments)
    repeats = arguments.repeats
    if arguments.what == "probe":
        found = bench_probe(load_config(ProbeConfig, arguments.config, arguments.words), repeats)
    else:
        config = load_config(TrainConfig, arguments.config, arguments.words)
        if arguments.what == "loader":
            found = bench_loader(config, repeats, arguments.step_ms)
        elif arguments.what == "decode":
            found = bench_decode(config, repeats)
        elif arguments.sweep:
            found = run_sweep(config, arguments)
        else:
            found = run_step(config, arguments)
    print(json.dumps({"bench": arguments.what, **environment(), **found}))
