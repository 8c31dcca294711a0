"""Surprise: tell possible from impossible videos by how far predictions are from what happens.

    vjepa surprise RUN pairs=FOLDER          accuracy, AUROC and every cheap baseline, with intervals
    vjepa surprise watch RUN VIDEO ...       energy over time beside the video: PNG, GIF, mp4

FOLDER is the output of `generate twins`, or has the shape of IntPhys, GRASP or InfLevel (docs/energy.md). Nothing is
trained. results.json and report.html are written to RUN/surprise, or to output=FOLDER.
"""

import argparse
from pathlib import Path

from data.files import write_json
from launch.config import load_config
from launch.exchange.encoders import add_encoder_arguments, read_hints
from launch.seeing.energies import context_steps
from launch.seeing.imagination import load_imagination
from launch.seeing.pairs import read_frames
from launch.seeing.surprise import FOLDER, SurpriseConfig, surprise
from launch.seeing.surprise_page import property_lines, result_lines, write_page
from launch.seeing.watch import watch_video, write_watched
from probes.tables import align_columns

WATCH = "watch"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `surprise`."""
    parser.add_argument("words", nargs="+", metavar="[watch] RUN key=value | VIDEO", help="see above")
    parser.add_argument("--context", type=int, default=0, help="watch: visible frames of a window (default: half)")
    parser.add_argument("--step", type=int, default=1, help="watch: take every n-th frame (default: 1)")
    parser.add_argument("--stride", type=int, default=1, help="watch: frames between windows (default: 1)")
    parser.add_argument("--output", type=Path, help="watch: folder for the pictures (default: RUN/surprise/pictures)")
    add_encoder_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    """Measure pairs, or watch videos."""
    words = list(arguments.words)
    watches = words[0] == WATCH
    if watches and len(words) < 3:
        raise ValueError("give a RUN and at least one VIDEO to watch")
    name, *rest = words[1:] if watches else words
    imagination = load_imagination(name, arguments.weights, read_hints(arguments))
    home = (Path(name) if Path(name).is_dir() else Path("runs")) / FOLDER
    if watches:
        half = imagination.config.grid[0] // 2 * imagination.config.tubelet
        seen = context_steps(imagination, [arguments.context or half])[0]
        for video in rest:
            frames = read_frames(Path(video), imagination.config.crop, arguments.step)
            watched = watch_video(imagination, frames, seen, arguments.stride, 16, video)
            stem = (arguments.output or home / "pictures") / Path(video).stem
            print(f"{video}: {', '.join(str(path) for path in write_watched(watched, stem, Path(video).name))}")
        return
    config = load_config(SurpriseConfig, None, rest)
    outcome = surprise(imagination, config)
    folder = home if config.output is None else Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "results.json", {"model": imagination.source, "pairs": config.pairs, **outcome.plain()})
    write_page(folder / "report.html", imagination.source, outcome, config.pairs)
    print(align_columns(result_lines(outcome)))
    print(f"\n{align_columns(property_lines(outcome))}")
    print(f"\nwritten to {folder}: results.json, report.html")
