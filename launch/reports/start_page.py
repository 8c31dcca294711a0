"""The report of `vjepa start`: the videos, what was chosen, the curves, neighbours in feature space, and scores."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from data.loading.loader import DataConfig, EvalLoader
from launch.reports.look import look_sections
from launch.reports.moving import show_features, show_masks
from launch.reports.page import Section, result_table, write_report
from launch.reports.pictures import read_history, show_curves
from launch.training.config import TrainConfig
from probes.evaluate import Result
from vjepa.formats.native import load_encoder

COMPARED = 200  # videos on the map, among which neighbours are searched
FEW = 4  # clips shown with features and masks


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
    clips, names = read_clips(shards.get("val", shards["train"]), config.data, COMPARED)
    step = max(1, len(clips) // FEW)
    few = clips[::step][:FEW]
    titles = [name or f"clip {number + 1}" for number, name in enumerate(names[::step][:FEW])]
    masks = config.jepa.masks
    sections = [Section("Results", SCORED, result_table([result.as_dict() for result in results]))] if results else []
    sections += [
        *look_sections(clips, names, encoder),
        Section("Features", FEATURES, show_features(few, titles, encoder)),
        Section("Training curves", CURVES, show_curves(read_history(folder / "run"))),
    ]
    if masks:
        sections.append(Section("What the encoder sees", SEEN, show_masks(few, titles, masks, encoder)))
    chosen = "".join(f"<li>{html.escape(reason)}</li>" for reason in reasons)
    sections.append(Section("What was chosen, and why", survey.replace("\n", "; "), f"<ul>{chosen}</ul>"))
    lead = f"{config.run.batch} clips per step, {seconds / 60:.1f} minutes of training, seed {config.run.seed}."
    write_report(folder / "report.html", f"vjepa: {folder.name}", lead, sections)


def read_clips(shards: Path, config: DataConfig, wanted: int) -> tuple[Tensor, list[str]]:
    """Up to `wanted` clips uint8 [N, T, H, W, 3] of different videos, and their class names ("" without labels)."""
    loader = EvalLoader(replace(config, path=str(shards), workers=0), batch=8)
    classes, clips, names = loader.manifest.classes, list[Tensor](), list[str]()
    for batch in loader:
        clips += list(batch.clips[:, 0])
        names += [classes[label] if classes and label >= 0 else "" for label in batch.labels.tolist()]
        if len(clips) >= wanted:
            break
    return torch.stack(clips[:wanted]), names[:wanted]


SCORED = (
    "Accuracy on the videos held out, encoder frozen, with its 95 % interval. The random encoder shows what "
    "the training added, the first frame alone how much of the task needs no motion."
)
FEATURES = "Each clip next to its features: three principal components as colours, minus the mean of each position."
CURVES = (
    "The loss is measured against a moving target, so it may rise while the features improve. If the representation "
    "collapses, the spread falls to 0 and the rank to 1."
)
SEEN = "Left: the clip; then what the context encoder sees of it. The predictor predicts the features of the rest."
