"""Exports an encoder, and reloads it to check the result."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from data.generated.sprites import SyntheticConfig, render_clip
from launch.exchange.card import PICTURE, CardConfig, write_card
from launch.exchange.encoders import Origin, describe_run
from launch.exchange.formats import FORMATS, Export
from launch.exchange.round_trip import measure_difference, read_classifier_again
from launch.reports.pictures import draw_feature_colours, read_history
from probes.heads import AttentiveHead
from probes.saved import SavedHead, name_kind
from vjepa.encoder import EncoderConfig
from vjepa.formats.accounting import resize_encoder
from vjepa.formats.classifier import save_classifier
from vjepa.jepa import JEPA
from vjepa.pixels import normalise

TOLERANCE = 1e-4
PICTURE_FRAMES = 16  # limit on frames per clip: four clips of 64 frames take minutes on a CPU


def export(model: JEPA, output: Path, kind: str = "native", weights: str = "target", source: str = "") -> float:
    """Export an encoder of `model`; returns the largest difference after reloading it (see `export_origin`)."""
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
    """Write encoder, predictor (if the format has one) and model card; returns the largest difference after reloading.

    clip: uint8 [1, T, H, W, 3]; head: exports a transformers classifier. Raises ValueError if the format cannot
    represent the encoder or the head, or if the reloaded encoder differs by more than the tolerance.
    """
    encoder, predictor = origin.pretrained.encoder, origin.pretrained.predictor
    facts = {name: value for name, value in origin.facts.items() if name != "config"}
    encoder.float().eval()
    if head is None:
        FORMATS.find(kind).write(Export(encoder, predictor, facts, output, origin.run))
    else:
        save_classifier(encoder, predictor, head.head.state_dict(), head.head.heads, head.classes, output)
        kind, origin = "classifier", replace(origin, facts={**origin.facts, "classifier": describe_head(head)})
    clip = generate_clips(encoder.config, 1) if clip is None else clip
    reader = FORMATS.find(kind).read(output) if head is None else read_classifier_again(output)
    difference = measure_difference(origin.pretrained, reader, normalise(clip), head.head if head else None)
    if not difference <= TOLERANCE:
        raise ValueError(
            f"{output}: the reloaded encoder differs by {difference:.1e}, allowed is {TOLERANCE:.0e}; do not use it"
        )
    caption = draw_picture(origin, output) if picture else ""
    write_card(output, kind, origin, difference, card or CardConfig(), caption)
    return difference


def find_results(probe: str) -> str:
    """The results.json next to a probe's head, for the model card of its classifier; "" if there is none."""
    path = Path(probe)
    path = path.parent if path.suffix == ".safetensors" else path
    file = path / "results.json" if path.is_dir() else path
    return str(file) if probe and file.is_file() else ""


def describe_head(head: SavedHead[AttentiveHead]) -> str:
    """A description of a head: kind and classes."""
    return f"{name_kind(head.head)} head of {len(head.classes)} classes: {', '.join(head.classes)}"


def generate_clips(config: EncoderConfig, count: int) -> Tensor:
    """Synthetic clips with the length and size the encoder was trained on: uint8 [count, T, H, W, 3]."""
    size = max(32, config.crop + config.crop % 2)
    settings = SyntheticConfig(size=size, frames=max(2, config.frames))
    clips = [torch.from_numpy(render_clip(label, label, settings)) for label in range(count)]
    whole = torch.stack(clips)[:, : config.frames]
    rows = torch.arange(config.crop) * size // config.crop
    return whole[:, :, rows][:, :, :, rows].contiguous()


def draw_picture(origin: Origin, output: Path) -> str:
    """Save a picture of the features of synthetic clips with the export; returns its caption."""
    encoder = origin.pretrained.encoder.float().eval()
    encoder = resize_encoder(encoder, frames=min(encoder.config.frames, PICTURE_FRAMES))
    figure = draw_feature_colours(generate_clips(encoder.config, 4), encoder)
    figure.savefig(output / PICTURE, dpi=110)
    return "Synthetic clips and the first three principal components of their features as red, green and blue."


def read_run(folder: Path) -> dict[str, str]:
    """Config and last gauges of a run directory, as text; empty for anything else."""
    facts = {}
    if (folder / "csv" / "metrics.csv").is_file():
        last = {name: values[-1] for name, (_, values) in read_history(folder).items() if name.startswith("gauges/")}
        if last:
            facts["gauges"] = ", ".join(f"{name.removeprefix('gauges/')} {value:.3g}" for name, value in last.items())
    if (folder / "config.yaml").is_file():
        facts["config"] = (folder / "config.yaml").read_text()
    return facts
