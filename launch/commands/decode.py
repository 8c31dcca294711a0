"""Decode what a model imagines into pixels.

    vjepa decode fit RUN data.path=shards            (train decoders, measure them, write a report)
    vjepa decode show RUN VIDEO ...                  (clip | visible | imagined | truth: PNG, GIF, mp4)

RUN is a run directory, a checkpoint, an exported folder or official weights with a predictor. The model stays frozen.
Decoders, results.json and report.html are written to RUN/decode, or to output=FOLDER (--decoder FOLDER for `show`).
"""

import argparse
from dataclasses import replace
from pathlib import Path

from data.files import write_json
from data.loading.clips import choose_frames
from data.loading.loader import EvalLoader, Request
from launch.config import load_config
from launch.exchange.encoders import add_encoder_arguments, read_hints
from launch.exchange.features import open_video, show_windows
from launch.seeing.decode_page import SHOWN, result_lines, write_page
from launch.seeing.fit import (
    FOLDER,
    RESULTS,
    DecodeConfig,
    data_settings,
    fit_decoders,
    load_decoders,
    measure_decoders,
    save_decoders,
    split_samples,
)
from launch.seeing.imagination import Imagination, load_imagination
from launch.seeing.pictures import imagine_panels, write_pictures
from probes.tables import align_columns


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `decode`."""
    parser.add_argument("action", choices=("fit", "show"))
    parser.add_argument("run", metavar="RUN", help="run directory, checkpoint, exported folder or official weights")
    parser.add_argument("rest", nargs="*", metavar="key=value | VIDEO", help="fit: overrides; show: videos")
    parser.add_argument("--decoder", type=Path, help="show: folder with decoders (default: RUN/decode)")
    parser.add_argument("--output", type=Path, help="show: folder for the pictures (default: RUN/decode/pictures)")
    parser.add_argument("--stride", type=int, default=1, help="show: take every n-th frame (default: 1)")
    parser.add_argument("--start", type=float, default=0.5, help="show: where in the video, from 0 to 1 (default: 0.5)")
    add_encoder_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    """Fit decoders, or draw pictures with them."""
    imagination = load_imagination(arguments.run, arguments.weights, read_hints(arguments))
    home = Path(arguments.run) if Path(arguments.run).is_dir() else Path("runs")
    if arguments.action == "fit":
        _fit(arguments, imagination, home / FOLDER)
    else:
        _show(arguments, imagination, home / FOLDER)


def _fit(arguments: argparse.Namespace, imagination: Imagination, home: Path) -> None:
    settings = data_settings(arguments.run, imagination)
    config = load_config(DecodeConfig, None, [*settings, *arguments.rest])
    own, data = imagination.config, config.data
    if (data.frames, data.crop) != (own.frames, own.crop):
        raise ValueError(
            f"data.frames and data.crop must be those of the model, {own.frames} and {own.crop}, got {data.frames} "
            f"and {data.crop}"
        )
    folder = home if config.output is None else Path(config.output)
    config = replace(config, output=str(folder))
    loader = EvalLoader(data, config.batch)
    train, test = split_samples(loader.manifest.samples, config.held_out, config.seed)
    test = test[: config.test_clips]
    rate = f"{data.fps:g} frames per second" if data.fps else f"stride {data.stride}"
    print(f"{len(train)} clips to train on, {len(test)} held out; {data.frames} frames at {rate}")
    decoders = fit_decoders(imagination, config, loader, train)
    save_decoders(decoders, config, imagination.source, folder)
    results = measure_decoders(imagination, decoders, config, loader, test)
    write_json(folder / RESULTS, {"model": imagination.source, "results": results})
    shown = next(iter(loader.read([Request(test[:SHOWN])])))
    panels = {
        name: list(zip(shown.keys, imagine_panels(imagination, decoders, shown.clips[:, 0], name), strict=True))
        for name in imagination.masks
    }
    write_page(folder / "report.html", imagination.source, results, panels)
    print(align_columns(result_lines(results), left=(0, 1)))
    print(f"\nwritten to {folder}: {RESULTS}, report.html")


def _show(arguments: argparse.Namespace, imagination: Imagination, home: Path) -> None:
    if not arguments.rest:
        raise ValueError("give at least one VIDEO to show")
    decoders = load_decoders(arguments.decoder or home, imagination)
    output, own = arguments.output or home / "pictures", imagination.config
    for number, given in enumerate(arguments.rest):
        video = open_video(Path(given))
        indices = choose_frames(video.timing, own.frames, arguments.stride, 0.0, arguments.start)
        clips = next(show_windows(video, indices[None], own.crop))[None]
        for name in imagination.masks:
            panels = imagine_panels(imagination, decoders, clips, name, number)[0]
            stem = output / f"{Path(given).stem}-{name}"
            paths = write_pictures(panels, stem, f"{Path(given).name}, mask {name}")
            print(f"{given}: {', '.join(str(path) for path in paths)}")
