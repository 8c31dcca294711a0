"""Option checks and entry points of `bench step` and `bench step --sweep`, and the description of the machine."""

import argparse
import importlib.metadata
import platform
import sys
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from launch.bench.figure import draw_parts
from launch.bench.gpu import CURVE_CONFIG, bench_gpu, own_cases, usual_cases
from launch.bench.gpu import render as render_gpu
from launch.bench.peer import bench_peer
from launch.bench.plain import PlainStep, check_plain
from launch.bench.step import bench_step, describe
from launch.bench.sweep import HEADS, VARIED, cells, fastest, is_memory, render, sweep
from launch.cluster.snapshot import describe_code
from launch.config import load_config
from launch.training.config import TrainConfig
from launch.training.ranks import share_of_device
from probes.tables import align_columns

KINDS = ("step", "loader", "reads", "decode", "probe", "gpu")
# option: the benchmark it belongs to, whether it combines with --sweep
BELONGS = {
    "plain": ("step", False),
    "figure": ("step", False),
    "profile": ("step", False),
    "sweep": ("step", True),
    "most_clips": ("step", True),
    "vary": ("step", True),
    "step_ms": ("loader", False),
    "ranks": ("reads", False),
    "terabytes": ("reads", False),
    "clip_mb": ("reads", False),
    "peer": ("gpu", False),
}
CPUINFO = Path("/proc/cpuinfo")


def check_options(arguments: argparse.Namespace) -> None:
    """Raise ValueError for an option that does not apply to the chosen benchmark."""
    for name, (what, with_sweep) in BELONGS.items():
        option, value = f"--{name.replace('_', '-')}", getattr(arguments, name)
        if value is None or value is False:
            continue
        if arguments.what != what:
            raise ValueError(f"{option} belongs to `bench {what}`, not to `bench {arguments.what}`; leave it out")
        if what == "step" and arguments.sweep != with_sweep:
            remedy = "leave one of them out" if arguments.sweep else "give both"
            raise ValueError(f"{option} {'goes with' if with_sweep else 'does not go with'} --sweep; {remedy}")
    if arguments.config is None and arguments.what != "gpu":
        raise ValueError(f"`bench {arguments.what}` needs a config: a YAML file, or the name of a ready-made one")
    for name, least in (("repeats", 1), ("most_clips", 1), ("step_ms", 1e-9), ("clip_mb", 1e-9)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise ValueError(
                f"--{name.replace('_', '-')} must be {'above 0' if least < 1 else 'at least 1'}, got {value}"
            )


def run_step(config: TrainConfig, arguments: argparse.Namespace) -> dict[str, Any]:
    """The results of `bench step`; writes the figure and the trace if requested."""
    if arguments.plain:
        check_plain(config.jepa)
    clips = share_of_device(config.run).clips
    print(f"measuring steps of {clips} clips (change with run.batch_per_device=N)", file=sys.stderr)
    try:
        found = bench_step(config, arguments.repeats, PlainStep if arguments.plain else None, arguments.profile)
    except (RuntimeError, MemoryError) as error:
        if not is_memory(error):
            raise
        raise ValueError(
            f"a batch of {clips} clips needs more memory than this device has; give a smaller run.batch_per_device, or "
            "let --sweep find the largest"
        ) from error
    if arguments.figure is not None:
        bars = {"ours": found["parts_ms"]}
        if arguments.plain:
            bars["plain"] = found["plain"]["parts_ms"]
        title = (
            f"{found['encoder']} encoder, {'x'.join(map(str, found['tokens']))} tokens, batch {found['batch']}, "
            f"{found['precision']}, {name_device()}, torch threads: {torch.get_num_threads()}"
        )
        draw_parts(bars, title, arguments.figure)
        found["figure"] = str(arguments.figure)
    for path in (found.get("figure"), *found.get("profile", {}).values()):
        if path:
            print(f"written: {path}", file=sys.stderr)
    return found


def run_sweep(config: TrainConfig, arguments: argparse.Namespace) -> dict[str, Any]:
    """The points of the sweep; prints its table."""
    vary = VARIED if arguments.vary is None else tuple(filter(None, arguments.vary.split(",")))
    points = []
    for point in sweep(config, arguments.repeats, arguments.most_clips or 0, vary):
        points.append(point)
        measured = (f"{head} {cell}" for head, cell in zip(HEADS, cells(point), strict=True) if cell)
        print(f"measured: {', '.join(measured)}", file=sys.stderr)  # progress, because compiling may take minutes
    print(render(points))
    best = fastest(points)
    about = {name: value for name, value in describe(config, 0).items() if name in ("encoder", "tokens")}
    return {**about, "best": None if best is None else asdict(best), "points": [asdict(point) for point in points]}


def run_gpu(arguments: argparse.Namespace) -> dict[str, Any]:
    """The results of `bench gpu`; prints its table and what it suggests."""
    config = arguments.config
    cases = usual_cases() if config is None else own_cases(config, arguments.overrides)
    found = bench_gpu(cases, arguments.repeats, CURVE_CONFIG if config is None else config, tuple(arguments.overrides))
    if arguments.peer is not None:
        case = cases[1]
        found["peer"] = bench_peer(
            arguments.peer, load_config(TrainConfig, case.config, list(case.overrides)), arguments.repeats
        )
    print(align_columns(render_gpu(found), left=(0, 7)))
    for decision in found["decisions"]:
        print(f"- {decision}")
    return found


def environment() -> dict[str, Any]:
    """The device and the versions that the numbers were measured with."""
    code = describe_code()
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "device": name_device(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "lightning": importlib.metadata.version("pytorch-lightning"),
        "python": platform.python_version(),
        "commit": code["commit"] and code["commit"][:10] + ("-dirty" if code["changed"] else ""),
    }


def name_device() -> str:
    """The name of the GPU, else the CPU model."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    if CPUINFO.is_file():
        for line in CPUINFO.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
