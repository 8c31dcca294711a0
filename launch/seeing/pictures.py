"""Pictures of what a model imagines: clip, what is visible, imagined, truth; as PNG, GIF and mp4.

T frames, H W pixels, P panels.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from data.files import replacing
from data.generated.videos import encode_clip
from launch.reports.pictures import INK, make_gif
from launch.seeing.decoder import cut_pixels, join_pixels, paste
from launch.seeing.fit import Decoders
from launch.seeing.imagination import Imagination
from vjepa.patches import gather_tokens
from vjepa.pixels import normalise

Frames = npt.NDArray[np.uint8]  # [T, H, W, 3]

COLUMNS = 8  # frames of a still picture
SIDE = 168  # pixels of a panel of a moving picture
LABEL = 34  # pixels of its label
FADE = 0.72  # grey of what is hidden


@torch.no_grad()
def imagine_panels(
    imagination: Imagination, decoders: Decoders, clips: Tensor, name: str, first: int = 0
) -> list[dict[str, Frames]]:
    """For each of clips uint8 [B, T, H, W, 3], the panels by title: clip, visible, imagined twice, and the truth.

    `truth` is the decoded target: the best that this decoder can show.
    """
    mask = imagination.draw(name, len(clips), imagination.config.grid, first)
    video, config, on = normalise(clips), decoders.config, decoders.modules
    true = cut_pixels(clips, config)
    seen = paste(torch.full((*mask.target.shape, true.shape[-1]), FADE), mask.target, true)
    predicted = imagination.predict(video, mask, name)
    targets = gather_tokens(imagination.target(video), mask.target)
    panels = {
        "clip": true,
        "visible": seen,
        "imagined\n(decoder on targets)": paste(on["targets"](predicted, mask.target), mask.target, true),
        "imagined\n(decoder on predictions)": paste(on["predictions"](predicted, mask.target), mask.target, true),
        "truth\n(decoded targets)": paste(on["targets"](targets, mask.target), mask.target, true),
    }
    frames = {title: _to_bytes(join_pixels(tokens, config)) for title, tokens in panels.items()}
    return [{title: stack[clip] for title, stack in frames.items()} for clip in range(len(clips))]


def draw_still(panels: Mapping[str, Frames], title: str = "") -> Figure:
    """One row per panel, frames from left to right."""
    length = len(next(iter(panels.values())))
    indices = np.linspace(0, length - 1, min(COLUMNS, length)).round().astype(int)
    figure = Figure(figsize=(1.7 + 1.05 * len(indices), 1.05 * len(panels) + (0.45 if title else 0.2)))
    axes = figure.subplots(len(panels), len(indices), squeeze=False)
    for row, (name, frames) in enumerate(panels.items()):
        for column, index in enumerate(indices):
            axis = axes[row, column]
            axis.imshow(frames[index], interpolation="nearest")
            axis.set_axis_off()
            if row == 0:
                axis.set_title(f"{index + 1}", fontsize=8, color=INK)
        axes[row, 0].text(
            -0.1, 0.5, name, transform=axes[row, 0].transAxes, va="center", ha="right", fontsize=8, color=INK
        )
    if title:
        figure.suptitle(title, fontsize=10, color=INK)
    top = 1 - (0.42 if title else 0.2) / figure.get_figheight()
    figure.subplots_adjust(1.6 / figure.get_figwidth(), 0.01, 0.995, top, 0.04, 0.04)
    return figure


def draw_moving(panels: Mapping[str, Frames]) -> Frames:
    """The panels side by side with their titles: frames [T, H, W, 3] with even sides."""
    length = len(next(iter(panels.values())))
    width = len(panels) * (SIDE + 6) - 6
    font = ImageFont.load_default(12)
    found = []
    for number in range(length):
        sheet = Image.new("RGB", (width + width % 2, SIDE + LABEL), "white")
        pen = ImageDraw.Draw(sheet)
        for column, (title, frames) in enumerate(panels.items()):
            picture = Image.fromarray(frames[number]).resize((SIDE, SIDE), Image.Resampling.NEAREST)
            left = column * (SIDE + 6)
            sheet.paste(picture, (left, LABEL))
            pen.multiline_text((left + SIDE / 2, LABEL / 2), title, INK, font, "mm", spacing=1, align="center")
        found.append(np.asarray(sheet))
    return np.stack(found)


def write_pictures(panels: Mapping[str, Frames], stem: Path, title: str = "", fps: float = 6) -> list[Path]:
    """Write STEM.png, STEM.gif and STEM.mp4; the paths written."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = [stem.with_name(stem.name + suffix) for suffix in (".png", ".gif", ".mp4")]
    with replacing(paths[0]) as part:
        FigureCanvasAgg(draw_still(panels, title)).print_png(str(part))
    write_moving(draw_moving(panels), paths[1], paths[2], fps)
    return paths


def write_moving(frames: Frames, gif: Path, mp4: Path, fps: float) -> None:
    """Frames [T, H, W, 3] as an endless GIF and as H.264; the last frame of the GIF stays for a second."""
    with replacing(gif) as part:
        part.write_bytes(make_gif([Image.fromarray(frame) for frame in frames], round(1000 / fps), 1000))
    with replacing(mp4) as part:
        encode_clip(frames, part, max(1, round(fps)), 18)


def _to_bytes(frames: Tensor) -> Frames:
    """Frames from 0 to 1 as bytes."""
    found: Frames = (frames.clamp(0, 1) * 255 + 0.5).byte().numpy()
    return found
