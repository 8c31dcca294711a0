"""Energy over time beside the video: a plot and a moving picture.

F frames, n windows of T frames, t steps of the token grid.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from data.files import replacing
from launch.reports.pictures import BLUE, GREY, INK, ORANGE, rasterise
from launch.seeing.energies import cut_windows, model_energy
from launch.seeing.imagination import Imagination
from launch.seeing.pictures import write_moving

STRIP = 8  # frames above the plot


@dataclass(frozen=True)
class Watched:
    """A video and the energy of each of its frames; nan where no window predicts it."""

    frames: npt.NDArray[np.uint8]  # [F, H, W, 3]
    energy: npt.NDArray[np.float64]  # [F]


def watch_video(imagination: Imagination, frames: Tensor, seen: int, stride: int, batch: int, name: str) -> Watched:
    """Energies of frames uint8 [F, H, W, 3], each averaged over the windows in which it is hidden.

    `seen`: visible steps at the start of every window; `stride`: frames between windows.
    """
    length, tubelet = imagination.config.frames, imagination.config.tubelet
    windows = cut_windows(frames, length, stride, name)
    starts = cut_windows(torch.arange(len(frames)), length, stride, name)[:, 0].tolist()
    measure = model_energy(imagination, [seen])
    energies = torch.cat([measure(part)[0] for part in windows.split(batch)]).repeat_interleave(tubelet, 1).double()
    total, count = np.zeros(len(frames)), np.zeros(len(frames))
    for start, energy in zip(starts, energies.numpy(), strict=True):
        hidden = ~np.isnan(energy)
        total[start : start + length][hidden] += energy[hidden]
        count[start : start + length] += hidden
    mean = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return Watched(frames.numpy(), mean)


def draw_watched(watched: Watched, title: str, at: int | None = None) -> Figure:
    """Frames above the curve of their energy; with `at`, that frame alone with a cursor on the curve."""
    length = len(watched.frames)
    shown = [at] if at is not None else np.linspace(0, length - 1, min(STRIP, length)).round().astype(int).tolist()
    figure = Figure(figsize=(8, 3.6))
    grid = figure.add_gridspec(2, len(shown), height_ratios=(1.0, 1.25) if at is None else (1.4, 1.0))
    for column, index in enumerate(shown):
        axis = figure.add_subplot(grid[0, column])
        axis.imshow(watched.frames[index], interpolation="nearest")
        axis.set_title(f"frame {index + 1}", fontsize=7, color=INK)
        axis.set_axis_off()
    axis = figure.add_subplot(grid[1, :])
    axis.plot(range(1, length + 1), watched.energy, color=BLUE, linewidth=1.6)
    if not np.isnan(watched.energy).all():
        peak = int(np.nanargmax(watched.energy))
        axis.plot(peak + 1, watched.energy[peak], "o", color=ORANGE, markersize=5)
    if at is not None:
        axis.axvline(at + 1, color=GREY, linewidth=1.2)
    axis.set_xlim(0.5, length + 0.5)
    axis.set_xlabel(f"frame; {title}", fontsize=8, color=INK)
    axis.set_ylabel("energy", fontsize=8, color=INK)
    axis.grid(color="#e6e9ef")
    axis.tick_params(labelsize=7)
    figure.tight_layout(pad=0.6)
    return figure


def write_watched(watched: Watched, stem: Path, title: str, fps: float = 6) -> list[Path]:
    """Write STEM.png, STEM.gif and STEM.mp4; the paths written."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = [stem.with_name(stem.name + suffix) for suffix in (".png", ".gif", ".mp4")]
    with replacing(paths[0]) as part:
        FigureCanvasAgg(draw_watched(watched, title)).print_png(str(part))
    moving = [rasterise(draw_watched(watched, title, index), 80) for index in range(len(watched.frames))]
    write_moving(np.stack(moving), paths[1], paths[2], fps)
    return paths
