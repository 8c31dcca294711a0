"""Build a labelled data set from unlabelled videos, to probe an encoder on footage without annotations.

    vjepa windows VIDEOS OUT                        is a window played forward or backward?
    vjepa windows VIDEOS OUT --label source         which video is a window from?
    vjepa pack OUT/train SHARDS/train               then pack both sets, and probe as usual

The test windows come from the last part of every video; the two sets share no frame.
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
        ("frames", "frames per window"),
        ("stride", "step between the frames of a window, in video frames"),
        ("hop", "step between the starts of two windows, in video frames"),
        ("short-side", "short side of the windows in pixels"),
    ):
        default = getattr(DEFAULT, name.replace("-", "_"))
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{what} (default: {default})")
    parser.add_argument(
        "--held-out", type=float, default=DEFAULT.held_out, help="fraction for the test set (default: 0.3)"
    )


def run(arguments: argparse.Namespace) -> None:
    """Write the windows and print how many."""
    config = WindowConfig(
        arguments.frames, arguments.stride, arguments.hop, arguments.short_side, held_out=arguments.held_out
    )
    counts = write_windows(arguments.videos, arguments.output, arguments.label, config)
    print(f"{counts['train']} windows in {arguments.output / 'train'}, {counts['test']} in {arguments.output / 'test'}")
