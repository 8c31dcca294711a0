"""Write an encoder for others to load.

    python -m launch export runs/demo/run encoder                           native: for vjepa.load_encoder
    python -m launch export runs/vitl vitl-hf --format transformers         for AutoModel.from_pretrained
    ... --format transformers --probe runs/probe                            for AutoModelForVideoClassification
    python -m launch export runs/vitl vitl-onnx --format onnx               for onnxruntime
    python -m launch export runs/vitl vitl-pt2 --format program             for torch.export.load
    python -m launch export runs/vitl vitl-meta --format meta               for the public V-JEPA code
    python -m launch export vitl.pt vitl --weights target_encoder           an official checkpoint as input

What was written is loaded again and compared with the original on a clip; a difference above the tolerance is an error.
A model card, README.md, is written beside it.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from data.synthetic import SyntheticConfig, render_clip
from launch.card import PICTURE, CardConfig, write_card
from launch.encoders import Origin, add_encoder_arguments, describe_run, read_head, read_hints, read_origin
from launch.features import read_clip
from launch.pictures import draw_feature_colours, read_history
from launch.verify import measure_difference, read_again
from probes.heads import AttentiveHead
from probes.results import read_results
from probes.saved import SavedHead, name_kind
from vjepa.formats.accounting import resize_encoder
from vjepa.formats.classifier import save_classifier
from vjepa.formats.graph import save_onnx, save_program
from vjepa.formats.meta import save_meta
from vjepa.formats.native import save_encoder
from vjepa.formats.transformers import save_transformers
from vjepa.jepa import JEPA
from vjepa.pixels import normalise
from vjepa.vit import EncoderConfig

TOLERANCE = 1e-4
PICTURE_FRAMES = 16  # at most: four clips of 64 frames take minutes on a CPU
FORMATS = ("native", "transformers", "onnx", "program", "meta")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `export`."""
    parser.add_argument("checkpoint", help="run directory, .ckpt file, exported folder or official checkpoint")
    parser.add_argument("output", help="folder to write")
    parser.add_argument("--format", choices=FORMATS, default="native")
    add_encoder_arguments(parser)
    parser.add_argument(
        "--probe",
        default="",
        help="folder or results.json of `python -m launch probe`: its attentive head as classifier",
    )
    parser.add_argument("--clip", help="video to compare on (default: a generated one)")
    group = parser.add_argument_group("model card")
    group.add_argument("--licence", default="", help="of the weights, as apache-2.0")
    group.add_argument("--data", default="", help="what it was trained on, in words")
    group.add_argument("--results", default="", help="results.json of `python -m launch probe`, to be shown")
    group.add_argument("--no-picture", action="store_true", help="without the picture of its features")


def run(arguments: argparse.Namespace) -> None:
    """Export, check, and write the card."""
    if arguments.probe and arguments.format != "transformers":
        raise ValueError(f"--probe makes a classifier of --format transformers, got --format {arguments.format}")
    results = arguments.results or find_results(arguments.probe)
    if results:
        read_results(results)  # a wrong file is better known before the work than after
    origin = read_origin(arguments.checkpoint, arguments.weights, read_hints(arguments))
    origin = replace(origin, facts={**origin.facts, **_read_run(Path(arguments.checkpoint))})
    head = read_head(arguments.probe, origin.pretrained.encoder) if arguments.probe else None
    output = Path(arguments.output)
    clip = read_clip(arguments.clip, origin.pretrained.encoder.config) if arguments.clip else None
    card = CardConfig(arguments.licence, arguments.data, results)
    difference = export_origin(origin, output, arguments.format, clip, card, not arguments.no_picture, head)
    print(origin.pretrained)
    print(f"written as {arguments.format} to {output}" + (f", with an {describe_head(head)}" if head else ""))
    print(f"loaded again and compared on a clip: largest difference {difference:.1e}")


def export(model: JEPA, output: Path, kind: str = "native", weights: str = "target", source: str = "") -> float:
    """Write an encoder of `model`; returns the largest difference after loading it again (see `export_origin`)."""
    return export_origin(describe_run(model, "context" if weights == "context" else "target", source), output, kind)


def export_origin(
    origin: Origin,
    output: Path,
    kind: str = "native",
    clip: Tensor | None = None,
    card: CardConfig | None = None,
    picture: bool = False,
    head: SavedHead[AttentiveHead] | None = None,
) -> float:
    """Write encoder, predictor where the format has one, and card; returns the largest difference after loading again.

    clip: uint8 [1, T, H, W, 3]; head: makes the export to transformers a classifier. Raises ValueError where the format
    cannot hold the encoder or the head, or what was loaded differs by more than the tolerance.
    """
    encoder, predictor = origin.pretrained.encoder, origin.pretrained.predictor
    facts = {name: value for name, value in origin.facts.items() if name != "config"}
    writers: dict[str, Callable[[], Path]] = {
        "native": lambda: save_encoder(encoder, output, facts, predictor),
        "transformers": lambda: save_transformers(encoder, predictor, output),
        "onnx": lambda: save_onnx(encoder, output),
        "program": lambda: save_program(encoder, output),
        "meta": lambda: save_meta(encoder, predictor, output),
    }
    encoder.float().eval()
    if head is None:
        writers[kind]()
    else:
        save_classifier(encoder, predictor, head.head.state_dict(), head.head.heads, head.classes, output)
        kind, origin = "classifier", replace(origin, facts={**origin.facts, "classifier": describe_head(head)})
    clip = generate_clips(encoder.config, 1) if clip is None else clip
    reader = read_again(kind, output)
    difference = measure_difference(origin.pretrained, reader, normalise(clip), head.head if head else None)
    if not difference <= TOLERANCE:
        raise ValueError(
            f"{output}: what was loaded differs by {difference:.1e}, at most {TOLERANCE:.0e} is allowed; do not use it"
        )
    caption = draw_picture(origin, output) if picture else ""
    write_card(output, kind, origin, difference, card or CardConfig(), caption)
    return difference


def find_results(probe: str) -> str:
    """The results.json beside a probe's head, which the card of its classifier shows; empty where there is none."""
    path = Path(probe)
    path = path.parent if path.suffix == ".safetensors" else path
    file = path / "results.json" if path.is_dir() else path
    return str(file) if probe and file.is_file() else ""


def describe_head(head: SavedHead[AttentiveHead]) -> str:
    """A head in words."""
    return f"{name_kind(head.head)} head of {len(head.classes)} classes: {', '.join(head.classes)}"


def generate_clips(config: EncoderConfig, count: int) -> Tensor:
    """Clips of moving things, as long and as large as the encoder was trained on: uint8 [count, T, H, W, 3]."""
    size = max(32, config.crop + config.crop % 2)
    settings = SyntheticConfig(size=size, frames=max(2, config.frames))
    clips = [torch.from_numpy(render_clip(label, label, settings)) for label in range(count)]
    whole = torch.stack(clips)[:, : config.frames]
    rows = torch.arange(config.crop) * size // config.crop
    return whole[:, :, rows][:, :, :, rows].contiguous()


def draw_picture(origin: Origin, output: Path) -> str:
    """Draw the features of generated clips as colours into the export; returns the caption."""
    encoder = origin.pretrained.encoder.float().eval()
    encoder = resize_encoder(encoder, frames=min(encoder.config.frames, PICTURE_FRAMES))
    figure = draw_feature_colours(generate_clips(encoder.config, 4), encoder)
    figure.savefig(output / PICTURE, dpi=110)
    return "Generated clips above the first three principal components of their features, as red, green and blue."


def _read_run(folder: Path) -> dict[str, str]:
    """Config and last gauges of a run directory, as text; nothing for anything else."""
    facts = {}
    if (folder / "csv" / "metrics.csv").is_file():
        last = {name: values[-1] for name, (_, values) in read_history(folder).items() if name.startswith("gauges/")}
        if last:
            facts["gauges"] = ", ".join(f"{name.removeprefix('gauges/')} {value:.3g}" for name, value in last.items())
    if (folder / "config.yaml").is_file():
        facts["config"] = (folder / "config.yaml").read_text()
    return facts
