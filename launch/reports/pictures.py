"""The still pictures of a report: curves, feature colours, confusion matrix; and clips under a mask.

B clips, T frames, H W pixels, (t, h, w) the token grid, N = t*h*w, D width.
"""

import base64
import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from vjepa.encoder import Encoder
from vjepa.masks import MaskConfig, draw_masks
from vjepa.pixels import normalise

Images = npt.NDArray[np.float32]

INK, BLUE, ORANGE, GREY = "#1d2433", "#2f6fde", "#e0752d", "#9aa3b2"
COLOURS = (BLUE, ORANGE, "#3a9e6e", "#a05bc4", GREY, "#c4475b")
NAMED = 40  # maximum number of classes with names on a confusion matrix


def mask_clips(clips: Tensor, mask: MaskConfig, number: int, encoder: Encoder) -> Tensor:
    """What the context encoder sees of clips uint8 [B, T, H, W, 3] under a run's mask `number`; the rest is grey."""
    drawn = draw_masks(mask, encoder.config.grid, torch.arange(len(clips)), 0, number)
    t, h, w = encoder.config.grid
    visible = torch.zeros(len(clips), t * h * w).scatter_(1, drawn.context, 1.0)
    seen = torch.from_numpy(_to_pixels(visible, encoder))[..., None]
    return (clips * seen + 128 * (1 - seen)).to(torch.uint8)


def show_curves(history: dict[str, tuple[list[int], list[float]]]) -> str:
    """Loss and collapse gauges against optimiser steps, as panels of HTML that a narrow page puts below each other."""
    panels = [
        ("loss/prediction", "prediction loss", "loss"),
        ("gauges/spread", "spread across clips (0: collapsed)", "spread"),
        ("gauges/rank", "effective rank of tokens", "rank"),
        ("gauges/pooled_rank", "effective rank of clip means", "rank"),
    ]
    shown = []
    for key, title, unit in panels:
        figure = Figure(figsize=(4.2, 2.9))
        axis = figure.subplots()
        axis.plot(*history.get(key, ([], [])), color=BLUE, linewidth=1.6)
        axis.set_title(title, fontsize=11, color=INK)
        axis.set_xlabel("optimiser step", fontsize=10)
        axis.set_ylabel(unit, fontsize=10)
        axis.set_ylim(bottom=0)
        tidy(axis)
        figure.tight_layout()
        shown.append(embed(figure, title))
    return f'<div class="plots">{"".join(shown)}</div>'


def tidy(axis: Any) -> None:
    """A light grid, readable ticks, no frame above and on the right."""
    axis.grid(color="#e6e9ef")
    axis.tick_params(labelsize=9)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def draw_feature_colours(clips: Tensor, encoder: Encoder) -> Figure:
    """Clips uint8 [B, T, H, W, 3] and their features: three principal components as red, green and blue.

    The mean of each position over the clips is subtracted first, so the colours show content, not position.
    """
    with torch.no_grad():
        features = encoder(normalise(clips))
    t, h, w = encoder.config.grid
    volume = feature_colours(features).unflatten(1, (t, h, w)).numpy()
    figure = Figure(figsize=(1.5 * t * 2 + 0.4, 1.5 * len(clips)))
    axes = figure.subplots(len(clips), 2 * t, squeeze=False)
    for row in range(len(clips)):
        for step in range(t):
            axes[row, 2 * step].imshow(clips[row, step * encoder.config.tubelet].numpy())
            axes[row, 2 * step + 1].imshow(volume[row, step], interpolation="bicubic")
    for axis in axes.flat:
        axis.set_axis_off()
    figure.tight_layout(pad=0.2)
    return figure


def feature_colours(features: Tensor) -> Tensor:
    """Three principal components of features [B, N, D] as red, green and blue in [0, 1]: [B, N, 3] on the CPU.

    All clips share the same components. The mean of each position over the clips is subtracted first, so the colours
    show content, not position.
    """
    features = features.float()
    centred = features - (features.mean(0) if len(features) > 1 else features.mean(1, keepdim=True))
    flat = centred.flatten(0, 1)
    _, directions = torch.linalg.eigh(flat.T @ flat)  # ascending; deterministic, unlike a low-rank approximation
    colours = (centred @ directions[:, -3:].flip(1)).cpu()
    low, high = colours.flatten(0, 1).quantile(0.02, dim=0), colours.flatten(0, 1).quantile(0.98, dim=0)
    scaled: Tensor = (colours - low) / (high - low).clamp(min=1e-12)
    return scaled.clamp(0, 1)


def draw_confusion(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> Figure:
    """Rows: true class; columns: prediction; per cent of the row. Names and numbers only as far as they fit."""
    counts = np.asarray(confusion, dtype=np.float64)
    share = 100 * counts / counts.sum(1, keepdims=True).clip(min=1)
    are_named = len(classes) <= NAMED
    side = 1.6 + 0.42 * len(classes) if are_named else 9.0
    figure = Figure(figsize=(side, side))
    axis = figure.subplots()
    axis.imshow(share, cmap="Blues", vmin=0, vmax=100)
    axis.set_xlabel("predicted", fontsize=9)
    axis.set_ylabel("true", fontsize=9)
    if are_named:
        axis.set_xticks(range(len(classes)), classes, rotation=60, ha="right", fontsize=8)
        axis.set_yticks(range(len(classes)), classes, fontsize=8)
        for (row, column), value in np.ndenumerate(share):
            if value >= 1:
                colour = "white" if value > 55 else INK
                axis.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=7, color=colour)
    figure.tight_layout()
    return figure


def read_history(folder: Path) -> dict[str, tuple[list[int], list[float]]]:
    """The metrics that a run logged to its csv: name -> (steps, values)."""
    history: dict[str, tuple[list[int], list[float]]] = {}
    with (folder / "csv" / "metrics.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if value and name not in ("step", "epoch"):
                    steps, values = history.setdefault(name, ([], []))
                    steps.append(int(row["step"]))
                    values.append(float(value))
    return history


def rasterise(figure: Figure, dpi: int = 100) -> npt.NDArray[np.uint8]:
    """A figure as pixels [H, W, 3]."""
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels: npt.NDArray[np.uint8] = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    return pixels


def make_gif(pictures: Sequence[Image.Image], milliseconds: int, last: int) -> bytes:
    """An endless GIF; each picture is shown for `milliseconds`, the last one for `last`."""
    buffer, times = io.BytesIO(), [milliseconds] * (len(pictures) - 1) + [last]
    pictures[0].save(buffer, "GIF", save_all=True, append_images=pictures[1:], duration=times, loop=0)
    return buffer.getvalue()


def embed(figure: Figure, alternative: str = "", wide: bool = False) -> str:
    """A figure as an <img> with embedded data; a `wide` one keeps its size, and a narrow page scrolls it sideways."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    data = base64.b64encode(buffer.getvalue()).decode()
    picture = f'<img alt="{alternative}" src="data:image/png;base64,{data}">'
    return f'<div class="wide">{picture}</div>' if wide else picture


def _to_pixels(tokens: Tensor, encoder: Encoder) -> Images:
    """Token values [B, N] expanded to pixels [B, T, H, W]."""
    config = encoder.config
    volume = tokens.unflatten(1, config.grid)
    volume = volume.repeat_interleave(config.tubelet, 1)
    spread: Images = volume.repeat_interleave(config.patch, 2).repeat_interleave(config.patch, 3).numpy()
    return spread
