"""The report of `vjepa start`: the videos, what was chosen, the curves, neighbours in feature space, and scores."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional

from data.loading.loader import EvalLoader
from launch.reports.page import Section, result_table, write_report
from launch.reports.pictures import INK, draw_contact_sheet, draw_curves, draw_feature_colours, embed, read_history
from launch.training.config import TrainConfig
from probes.evaluate import Result
from vjepa.encoder import Encoder
from vjepa.formats.native import load_encoder
from vjepa.pixels import normalise

COMPARED = 200  # videos among which neighbours are searched
ROWS, NEAREST = 5, 5  # clips shown, and neighbours of each


def write_start_page(
    folder: Path,
    survey: str,
    reasons: Sequence[str],
    config: TrainConfig,
    shards: Mapping[str, Path],
    results: Sequence[Result],
    seconds: float,
) -> None:
    """Write report.html into `folder`, which holds the run and the encoder."""
    encoder = load_encoder(folder / "encoder")
    clips, names = read_clips(shards.get("val", shards["train"]), config, COMPARED)
    few = clips[:: max(1, len(clips) // ROWS)][:ROWS]
    titles = [f"clip {number + 1}" for number in range(len(few))]
    masks = config.jepa.masks
    sections = [Section("Results", SCORED, result_table([result.as_dict() for result in results]))] if results else []
    sections += [
        Section("Nearest neighbours", NEIGHBOURS, embed(draw_neighbours(clips, names, encoder), "nearest neighbours")),
        Section("Features", FEATURES, embed(draw_feature_colours(few, encoder), "clips and feature colours")),
        Section("Training curves", CURVES, embed(draw_curves(read_history(folder / "run")), "loss and gauges")),
    ]
    if masks:
        seen = embed(draw_contact_sheet(few, titles, masks, encoder), "clips and masks")
        sections.append(Section("What the encoder sees", SEEN, seen))
    chosen = "".join(f"<li>{html.escape(reason)}</li>" for reason in reasons)
    sections.append(Section("What was chosen, and why", survey.replace("\n", "; "), f"<ul>{chosen}</ul>"))
    lead = f"{config.run.batch} clips per step, {seconds / 60:.1f} minutes of training, seed {config.run.seed}."
    write_report(folder / "report.html", f"vjepa: {folder.name}", lead, sections)


def read_clips(shards: Path, config: TrainConfig, wanted: int) -> tuple[Tensor, list[str]]:
    """Up to `wanted` clips uint8 [N, T, H, W, 3] of different videos, and their class names ("" without labels)."""
    loader = EvalLoader(replace(config.data, path=str(shards), workers=0), batch=8)
    classes, clips, names = loader.manifest.classes, list[Tensor](), list[str]()
    for batch in loader:
        clips += list(batch.clips[:, 0])
        names += [classes[label] if classes and label >= 0 else "" for label in batch.labels.tolist()]
        if len(clips) >= wanted:
            break
    return torch.stack(clips[:wanted]), names[:wanted]


def find_neighbours(clips: Tensor, encoder: Encoder, rows: int, nearest: int) -> Tensor:
    """Index [rows, 1 + nearest] of clips [N, T, H, W, 3]: a clip, then those with the most similar mean feature."""
    with torch.inference_mode():
        means = torch.cat([encoder(normalise(part)).mean(1) for part in clips.split(8)])
    features = functional.normalize(means - means.mean(0), dim=1)
    asked = torch.arange(len(clips))[:: max(1, len(clips) // rows)][:rows]
    similar = features[asked] @ features.T
    similar[torch.arange(len(asked)), asked] = 2.0  # a clip comes first in its own row
    return similar.topk(min(1 + nearest, len(clips)), dim=1).indices


def draw_neighbours(clips: Tensor, names: Sequence[str], encoder: Encoder) -> Figure:
    """The middle frame of some clips, each followed by those of its nearest neighbours."""
    index = find_neighbours(clips, encoder, ROWS, NEAREST)
    rows, columns = index.shape
    figure = Figure(figsize=(1.5 * columns, 1.65 * rows))
    axes = figure.subplots(rows, columns, squeeze=False)
    for row in range(rows):
        for column in range(columns):
            number, axis = int(index[row, column]), axes[row, column]
            axis.imshow(clips[number, clips.shape[1] // 2].numpy())
            axis.set_axis_off()
            title = names[number] or (f"clip {row + 1}" if column == 0 else f"neighbour {column}")
            axis.set_title(title, fontsize=8, color=INK, fontweight="bold" if column == 0 else "normal")
    figure.tight_layout(pad=0.4)
    return figure


SCORED = (
    "Accuracy on the videos held out, encoder frozen, with its 95 % interval. The random encoder shows what "
    "the training added, the first frame alone how much of the task needs no motion."
)
NEIGHBOURS = (
    "Left: a clip; then the clips with the most similar mean features, the most similar first. No labels were used."
)
FEATURES = "Each clip next to its features: three principal components as colours, minus the mean of each position."
CURVES = (
    "The loss is measured against a moving target, so it may rise while the features improve. If the representation "
    "collapses, the spread falls to 0 and the rank to 1."
)
SEEN = "Left: the clip; then what the context encoder sees of it. The predictor predicts the features of the rest."
