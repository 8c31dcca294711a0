"""Make a labelled set out of videos without labels, to probe an encoder on scenes that nobody annotated.

    python -m launch windows VIDEOS OUT                        is a window played forward or backward?
    python -m launch windows VIDEOS OUT --label source         which video is a window from?
    python -m launch pack OUT/train SHARDS/train               then pack both sets, and probe as usual

The test windows come from the last part of every video; no frame is in both sets.
"""

import argparse
from pathlib import Path

from data.packing.windows import WindowConfig, write_windows

DEFAULT = WindowConfig()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `windows`."""
    parser.add_argument("videos", help="folder, glob, csv or list of videos, or one video")
    parser.add_argument("output", type=Path, help="folder for train/ and test/")
    parser.add_argument("--label", choices=("direction", "source"), default="direction", help="default: direction")
    for name, what in (
        ("frames", "of a window"),
        ("stride", "frames of the video between two of a window"),
        ("hop", "frames of the video between the beginnings of two windows"),
        ("short-side", "pixels"),
    ):
        default = getattr(DEFAULT, name.replace("-", "_"))
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{what} (default: {default})")
    parser.add_argument(
        "--held-out", type=float, default=DEFAULT.held_out, help="share for the test set (default: 0.3)"
    )


def run(arguments: argparse.Namespace) -> None:
    """Write the windows and say how many."""
    config = WindowConfig(
        arguments.frames, arguments.stride, arguments.hop, arguments.short_side, held_out=arguments.held_out
    )
    counts = write_windows(arguments.videos, arguments.output, arguments.label, config)
    print(f"{counts['train']} windows in {arguments.output / 'train'}, {counts['test']} in {arguments.output / 'test'}")
