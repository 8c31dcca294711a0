"""Export an encoder in a format that other software can load.

    vjepa export runs/demo/run encoder                           native: for vjepa.load_encoder
    vjepa export runs/vitl vitl-hf --format transformers         for AutoModel.from_pretrained
    ... --format transformers --probe runs/probe                            for AutoModelForVideoClassification
    vjepa export runs/vitl vitl-onnx --format onnx               for onnxruntime
    vjepa export runs/vitl vitl-pt2 --format program             for torch.export.load
    vjepa export runs/vitl vitl-meta --format meta               for the public V-JEPA code
    vjepa export runs/world/run world --format world             for vjepa.WorldModel.load
    vjepa export vitl.pt vitl --weights target_encoder           an official checkpoint as input

The export is loaded again and compared with the original on a clip; a difference above the tolerance is an error.
A model card, README.md, is written next to it.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from launch.exchange.card import CardConfig
from launch.exchange.encoders import add_encoder_arguments, read_head, read_hints, read_origin
from launch.exchange.export import describe_head, export_origin, find_results, read_run
from launch.exchange.features import read_clip
from launch.exchange.formats import FORMATS
from launch.exchange.world import export_world
from probes.results import read_results

WORLD = "world"  # encoder, predictor and read-out of a world model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `export`."""
    parser.add_argument("checkpoint", help="run directory, .ckpt file, exported folder or official checkpoint")
    parser.add_argument("output", help="folder to write")
    parser.add_argument("--format", choices=[*FORMATS, WORLD], default="native")
    add_encoder_arguments(parser)
    parser.add_argument(
        "--probe",
        default="",
        help="folder or results.json of `vjepa probe`: export its attentive head as the classifier",
    )
    parser.add_argument("--clip", help="video for the comparison (default: a generated one)")
    group = parser.add_argument_group("model card")
    group.add_argument("--licence", default="", help="licence of the weights, such as apache-2.0")
    group.add_argument("--data", default="", help="description of the training data")
    group.add_argument("--results", default="", help="results.json of `vjepa probe` to show on the card")
    group.add_argument("--no-picture", action="store_true", help="omit the picture of the features")


def run(arguments: argparse.Namespace) -> None:
    """Export, check the round trip, and write the model card (of an encoder)."""
    if arguments.format == WORLD:
        apart = export_world(arguments.checkpoint, Path(arguments.output))
        print(f"world model written to {arguments.output}; reloaded, the largest difference imagined is {apart:.1e}")
        return
    if arguments.probe and arguments.format != "transformers":
        raise ValueError(f"--probe requires --format transformers, got --format {arguments.format}")
    results = arguments.results or find_results(arguments.probe)
    if results:
        read_results(results)  # a wrong file should fail before the export, not after it
    origin = read_origin(arguments.checkpoint, arguments.weights, read_hints(arguments))
    origin = replace(origin, facts={**origin.facts, **read_run(Path(arguments.checkpoint))})
    head = read_head(arguments.probe, origin.pretrained.encoder) if arguments.probe else None
    output = Path(arguments.output)
    clip = read_clip(arguments.clip, origin.pretrained.encoder.config) if arguments.clip else None
    card = CardConfig(arguments.licence, arguments.data, results)
    difference = export_origin(origin, output, arguments.format, clip, card, not arguments.no_picture, head)
    print(origin.pretrained)
    print(f"written as {arguments.format} to {output}" + (f", with an {describe_head(head)}" if head else ""))
    print(f"reloaded and compared on a clip: largest difference {difference:.1e}")
