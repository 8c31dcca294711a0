"""Extract features from videos of any length with a sliding window.

    vjepa features a.mp4 folder/ --encoder runs/demo/encoder --output features/
    vjepa features videos --encoder encoder --output features --pool mean --table features.parquet
    vjepa features talk.mp4 --encoder vitl.pt --weights target_encoder --output out --fps 4 --pool mean

Each video gives one file (safetensors, or npz with --to npz) with `features` [W, N, D], or [W, D] with --pool mean or
attentive; `times` [W, 2], the seconds of a window's first and last frame; and `frames` [W, T], the indices of the
frames it saw. --table joins them in one file for pandas and scikit-learn. See docs/formats.md. An existing file made
with the same settings is kept. Started several times by srun or torchrun, each process takes its share of the videos.
"""

import argparse
from pathlib import Path
from typing import Any

import torch

from launch.exchange.encoders import add_encoder_arguments, read_head, read_hints, read_origin
from launch.exchange.features import WindowConfig, extract_videos
from launch.exchange.table import check_table, write_table
from launch.ranks import find_rank


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `features`."""
    parser.add_argument("videos", nargs="+", metavar="VIDEO", help="video, folder, list or 'pattern'")
    parser.add_argument("--encoder", required=True, help="exported folder, run directory or official checkpoint")
    parser.add_argument("--output", required=True, help="folder to write")
    add_encoder_arguments(parser)
    defaults = WindowConfig()
    parser.add_argument("--window", type=int, default=0, help="frames of a window (default: as trained)")
    parser.add_argument("--stride", type=int, default=0, help="frames between windows (default: the window)")
    parser.add_argument("--step", type=int, default=1, help="take every n-th frame (default: 1)")
    parser.add_argument("--fps", type=float, default=0.0, help="take this many frames per second instead")
    parser.add_argument(
        "--pool", choices=["none", "mean", "attentive"], default="none", help="mean, attentive: one vector per window"
    )
    parser.add_argument(
        "--view", choices=["full", "published"], default="full",
        help="centre square of a frame: its whole short side, as the probe (default), or 224/256 of it",
    )  # fmt: skip
    parser.add_argument("--head", default="", help="for --pool attentive: folder or results.json of a probe")
    parser.add_argument("--layers", type=int, nargs="+", default=[], help="blocks to read from (default: the last)")
    parser.add_argument(
        "--hierarchical", action="store_true", help="join all levels of a V-JEPA 2.1 encoder in each token"
    )
    parser.add_argument("--batch", type=int, default=defaults.batch, help="windows per batch (default: 4)")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--to", choices=["safetensors", "npz"], default="safetensors", help="format of the files")
    parser.add_argument("--table", default="", metavar="FILE.parquet", help="also write all of them as one table")
    parser.add_argument("--overwrite", action="store_true", help="overwrite existing files")


def run(arguments: argparse.Namespace) -> None:
    """Extract the features; ValueError naming the videos that could not be read, if any."""
    names = ("window", "stride", "step", "fps", "pool", "view", "hierarchical", "batch", "precision")
    settings: dict[str, Any] = {name: getattr(arguments, name) for name in names}
    config = WindowConfig(layers=tuple(arguments.layers), **settings)
    if arguments.table:
        check_table(arguments.table, config.pool)
    origin = read_origin(arguments.encoder, arguments.weights, read_hints(arguments))
    encoder = origin.pretrained.encoder.float().eval()
    source = origin.pretrained.source
    if (config.pool == "attentive") != bool(arguments.head):
        raise ValueError("--pool attentive and --head must be given together")
    head = read_head(arguments.head, encoder).head if arguments.head else None
    rank = find_rank()
    if arguments.table and rank.world > 1:
        raise ValueError(
            "--table needs the features of all processes: leave it out, and run the command once more on one process, "
            "which keeps the files"
        )
    if torch.cuda.is_available() and rank.world > 1:
        torch.cuda.set_device(rank.local % torch.cuda.device_count())
    made, kept, failed = extract_videos(
        arguments.videos, encoder, Path(arguments.output), config, source, arguments.overwrite, head, arguments.to,
        rank.number, rank.world,
    )  # fmt: skip
    print(f"{arguments.output}: {made} videos, {kept} already done, {len(failed)} could not be read")
    if arguments.table:
        rows, columns = write_table(Path(arguments.table), arguments.videos, Path(arguments.output), arguments.to)
        print(f"{arguments.table}: {rows} rows, one per window, with {columns} features each")
    if failed:
        listed = "; ".join(f"{name}: {reason}" for name, reason in list(failed.items())[:5])
        raise ValueError(f"{len(failed)} of {made + kept + len(failed)} videos could not be read: {listed}")
