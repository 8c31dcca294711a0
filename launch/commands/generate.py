"""Generate a data set: videos, packed shards, and a table for each regression target.

    vjepa generate --list
    vjepa generate bodies runs/bodies --clips 2000 --seed 0 scenario=pendulum
    vjepa generate bodies --picture sheet.png scenario=arm

`train` and `probe` read OUTPUT/shards, a probe's targets= reads OUTPUT/values/NAME.csv, and OUTPUT/videos holds the
videos. The same arguments give the same bytes; an interrupted command continues when run again.
"""

import argparse
import os
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tqdm import tqdm

from data.generated.kinds import Kind, VideoSettings, all_kinds, find_kind
from data.generated.videos import write_set
from launch.config import load_config, to_yaml
from launch.plugins import PLUGINS
from vjepa.registry import import_plugins

ROWS, COLUMNS = 8, 8  # clips and frames of a contact sheet


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `generate`."""
    parser.add_argument("kind", metavar="KIND", nargs="?", help="what to generate; --list shows the kinds")
    parser.add_argument(
        "output_and_overrides",
        nargs="*",
        metavar="OUTPUT key=value",
        help="the output folder, and overrides of the defaults",
    )
    parser.add_argument("--clips", type=int, default=1000, help="number of clips (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="sets with different seeds share no clip (default: 0)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: one per core)")
    parser.add_argument("--list", action="store_true", help="show the kinds and stop")
    parser.add_argument("--show", action="store_true", help="print the resolved config and stop")
    parser.add_argument("--picture", metavar="PNG", type=Path, help="draw a contact sheet")


def run(arguments: argparse.Namespace) -> None:
    """List the kinds, show the config, draw a contact sheet, or write the data set."""
    if arguments.list:
        kinds = all_kinds()
        width = max(map(len, kinds))
        print("\n".join(f"{name:<{width}}  {kind.summary}" for name, kind in kinds.items()))
        return
    if not arguments.kind:
        raise ValueError("KIND is missing; vjepa generate --list shows the kinds")
    kind = find_kind(arguments.kind)
    folders = [word for word in arguments.output_and_overrides if "=" not in word]
    config = load_config(kind.config, None, [word for word in arguments.output_and_overrides if "=" in word])
    if arguments.show:
        print(to_yaml(config), end="")
        return
    if len(folders) > 1 or not (folders or arguments.picture):
        raise ValueError(f"give one OUTPUT folder (or --picture PNG), got {' '.join(folders) or 'none'}")
    if arguments.picture:
        arguments.picture.parent.mkdir(parents=True, exist_ok=True)
        FigureCanvasAgg(draw_sheet(kind, config, arguments.seed)).print_png(str(arguments.picture))
        print(f"contact sheet: {arguments.picture}")
    if folders:
        _write(kind, config, Path(folders[0]), arguments)


def _write(kind: Kind, config: VideoSettings, output: Path, arguments: argparse.Namespace) -> None:
    with tqdm(total=arguments.clips, unit="clip") as bar:
        manifest = write_set(
            kind,
            config,
            output,
            arguments.clips,
            arguments.seed,
            arguments.jobs,
            lambda done, _: bar.update(done - bar.n),
            partial(import_plugins, PLUGINS.get()),  # a kind of the user's own, in the worker processes too
        )
    tables = sorted(path.stem for path in (output / "values").glob("*.csv"))
    print(f"{manifest.samples} clips in {manifest.folder}, {manifest.total_bytes / 1e6:.1f} MB")
    print(f"classes: {', '.join(manifest.classes) or 'none'}")
    print(f"values in {output / 'values'}: {', '.join(tables)}" if tables else "values: none")


def draw_sheet(kind: Kind, config: VideoSettings, seed: int, rows: int = ROWS, columns: int = COLUMNS) -> Figure:
    """The first clips of a set: one row per clip, labelled with class and values, frames from left to right."""
    classes = kind.classes(config)
    figure = Figure(figsize=(1.7 + 1.06 * columns, 1.06 * rows + 0.4))
    axes = figure.subplots(rows, columns, squeeze=False)
    indices = np.linspace(0, config.frames - 1, columns).round().astype(int)
    for row in range(rows):
        clip = kind.render(config, row, seed)
        for axis, index in zip(axes[row], indices, strict=True):
            axis.imshow(clip.frames[index], interpolation="nearest")
            axis.set_axis_off()
            if row == 0:
                axis.set_title(f"frame {index + 1}", fontsize=8, color="#1d2433")
        caption = [] if clip.label is None else [classes[clip.label].replace("_", " ")]
        caption += [f"{name.replace('_', ' ')} {value:.3g}" for name, value in list(clip.values.items())[:4]]
        axes[row, 0].text(
            -0.1, 0.5, "\n".join(caption), transform=axes[row, 0].transAxes, va="center", ha="right", fontsize=8,
            color="#1d2433",
        )  # fmt: skip
    figure.subplots_adjust(1.6 / figure.get_figwidth(), 0.01, 0.995, 1 - 0.3 / figure.get_figheight(), 0.04, 0.04)
    return figure
