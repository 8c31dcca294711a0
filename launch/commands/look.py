"""Look at a set of videos through an encoder: nearest neighbours, a map of the clips, and features as colours.

    vjepa look runs/demo/encoder runs/demo/shards/test
    vjepa look encoder shards/val --output runs/look.html data.stride=2

Writes one page without labels being needed; where the set has classes, they colour the map. For the map by t-SNE,
scikit-learn must be installed (extra `probe`); otherwise it shows two principal components.
"""

import argparse
from dataclasses import dataclass, field, replace
from pathlib import Path

from data.loading.loader import DataConfig
from launch.config import load_config
from launch.exchange.encoders import read_origin
from launch.reports.look import look_sections
from launch.reports.moving import show_features
from launch.reports.page import Section, write_report
from launch.reports.start_page import FEATURES, FEW, read_clips


@dataclass(frozen=True)
class LookConfig:
    """What `data.` overrides change."""

    data: DataConfig = field(default_factory=lambda: DataConfig(stride=1))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `look`."""
    parser.add_argument("encoder", help="exported folder, run directory or hf://OWNER/NAME")
    parser.add_argument("shards", help="folder of shards")
    parser.add_argument("--clips", type=int, default=200, help="clips on the map, one per video (default: 200)")
    parser.add_argument("--output", default="runs/look.html", help="page to write (default: runs/look.html)")
    parser.add_argument("overrides", nargs="*", metavar="data.key=value", help="how clips are sampled, as in training")


def run(arguments: argparse.Namespace) -> None:
    """Write the page."""
    if arguments.clips < 2:
        raise ValueError(f"--clips must be at least 2, got {arguments.clips}")
    encoder = read_origin(arguments.encoder).pretrained.encoder.float().eval()
    data = load_config(LookConfig, None, arguments.overrides).data
    data = replace(data, frames=encoder.config.frames, crop=encoder.config.crop)
    clips, names = read_clips(Path(arguments.shards), data, arguments.clips)
    few = clips[:FEW]
    titles = [name or f"clip {number + 1}" for number, name in enumerate(names[:FEW])]
    sections = [
        *look_sections(clips, names, encoder),
        Section("Features", FEATURES, show_features(few, titles, encoder)),
    ]
    lead = f"{len(clips)} clips of {arguments.shards}, as {arguments.encoder} sees them."
    write_report(Path(arguments.output), f"vjepa look: {Path(arguments.shards).name}", lead, sections)
    print(f"{len(clips)} clips: {arguments.output}")
