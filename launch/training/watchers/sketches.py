"""Pictures of a training step: the masks, the features in colour, and the prediction error of each token.

B clips, T frames, H W pixels, (t, h, w) the token grid, N = t*h*w tokens, M to predict, D width; m of the t time steps
are shown, S is the side of a frame in a picture in pixels.
"""

from collections.abc import Sequence

import numpy as np
import pytorch_lightning as lightning
import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from launch.reports.pictures import BLUE, GREY, INK, ORANGE, Images, feature_colours, rasterise
from launch.training.watchers.board import log_picture
from launch.training.watchers.collapse import learned_features
from launch.training.watchers.watch import Reader
from vjepa.jepa import JEPA
from vjepa.objectives.objective import MaskPrediction, StepOutput
from vjepa.pixels import MEAN, STD
from vjepa.positions import Grid

CLIPS = 3  # clips per picture: the first of the batch
MAX_TIMES = 8  # time steps shown per clip, at most
SIDE = 112  # side of a frame in a picture, in pixels
GAP = 4  # pixels between frames

Row = tuple[str, Images]  # label, frames [m, S, S, 3]


class PictureReader(Reader):
    """Logs three pictures to TensorBoard: masks, features and prediction error."""

    name = "pictures"

    def __init__(self, every: int) -> None:
        self.every = every

    def read(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, output: StepOutput, video: Tensor
    ) -> None:
        """Draw the first clips of a step; nothing if its loss or features are not finite."""
        assert isinstance(module, JEPA)
        features = learned_features(trainer, module, output, video)
        if not output.loss.isfinite() or not features.isfinite().all():
            return
        frames = to_frames(video[:CLIPS], output.grid[0])
        log_picture(trainer, "pictures/features", rasterise(draw_features(frames, features, output.grid)))
        if output.predictions:
            log_picture(trainer, "pictures/masks", rasterise(draw_hidden(frames, output)))
        if output.targets is not None and output.predictions:
            log_picture(trainer, "pictures/error", rasterise(draw_errors(frames, output, output.targets)))


def draw_hidden(frames: Images, output: StepOutput) -> Figure:
    """Clips [B, m, S, S, 3], and below each clip what the context encoder sees under each mask."""
    clips = []
    for clip, shown in enumerate(frames):
        rows = [(f"clip {clip + 1}", shown)]
        for one in output.predictions:
            hidden = spread_tokens(mark(one.target_index[clip], output.grid), output.grid)
            seen = spread_tokens(mark(one.context_index[clip], output.grid), output.grid)
            lost = np.clip(1 - hidden - seen, 0, 1)
            tint = 0.12 * shown + 0.88 * np.array(to_rgb(ORANGE))
            rows.append((one.name, seen * shown + hidden * tint + lost * np.array(to_rgb(GREY))))
        clips.append(rows)
    figure = make_sheet(clips, output.grid, lines=1)
    legend = [
        Patch(color=ORANGE, label="hidden, to be predicted"),
        Patch(color=GREY, label="neither seen nor predicted"),
    ]
    figure.legend(handles=legend, loc="lower center", ncols=2, frameon=False, fontsize=9, labelcolor=INK)
    return figure


def draw_features(frames: Images, features: Tensor, grid: Grid) -> Figure:
    """Clips [B, m, S, S, 3], each with its token features as colours; `features` [clips of the batch, N, D]."""
    colours = feature_colours(features)
    clips = [
        [(f"clip {clip + 1}", shown), ("features", spread_tokens(colours[clip], grid))]
        for clip, shown in enumerate(frames)
    ]
    figure = make_sheet(clips, grid, lines=2)
    figure.supxlabel(
        "First three principal components of the features minus each position's mean, as red, green and blue.\n"
        "Colours are comparable between the clips of a picture, but not between pictures.",
        fontsize=9, color=INK,
    )  # fmt: skip
    return figure


def draw_errors(frames: Images, output: StepOutput, targets: Tensor) -> Figure:
    """Clips [B, m, S, S, 3] in grey, overlaid with the prediction error of each predicted token."""
    errors = [token_errors(one, targets) for one in output.predictions]
    drawn = torch.cat([error[: len(frames)].flatten() for error, _ in errors])
    low, high = drawn.quantile(torch.tensor([0.01, 0.99])).tolist()
    scale = ScalarMappable(Normalize(low, high), "inferno")
    clips, captions = [], []
    for clip, shown in enumerate(frames):
        grey = 0.3 + 0.7 * shown.mean(-1, keepdims=True).repeat(3, -1)
        rows = [(f"clip {clip + 1}", shown)]
        for one, (error, _) in zip(output.predictions, errors, strict=True):
            index = one.target_index[clip].cpu()
            volume = torch.zeros(output.grid).flatten().scatter_(0, index, error[clip])
            shade = scale.norm(spread_tokens(volume[:, None], output.grid)[..., 0])
            heat = np.asarray(scale.cmap(shade))[..., :3]
            covered = spread_tokens(mark(index, output.grid), output.grid)
            rows.append((one.name, covered * heat + (1 - covered) * grey))
        clips.append(rows)
    for one, (error, baseline) in zip(output.predictions, errors, strict=True):
        captions.append(
            f"{one.name}: mean error {float(error.mean()):.3f}; predicting each position's mean: {baseline:.3f}"
        )
    figure = make_sheet(clips, output.grid, lines=len(captions), margin=90)
    width, _ = figure.get_size_inches()
    bar = figure.colorbar(scale, cax=figure.add_axes((1 - 0.82 / width, 0.3, 0.14 / width, 0.5)), extend="both")
    bar.set_label("mean |prediction - target| per token", fontsize=8, color=INK)
    bar.ax.tick_params(labelsize=7)
    figure.supxlabel("\n".join(captions), fontsize=9, color=INK)
    return figure


def token_errors(one: MaskPrediction, targets: Tensor) -> tuple[Tensor, float]:
    """Mean |prediction - target| of each predicted token [B, M] on the CPU, and the mean error of a trivial baseline.

    The baseline predicts the batch mean of the targets [B, N, D] at the token's position, whatever the clip.
    """
    index = one.target_index.unsqueeze(-1).expand(-1, -1, targets.shape[-1])
    wanted = targets.gather(1, index).float()
    baseline = targets.float().mean(0).expand_as(targets).gather(1, index)
    return (one.prediction.float() - wanted).abs().mean(-1).cpu(), float((baseline - wanted).abs().mean())


def to_frames(video: Tensor, times: int) -> Images:
    """The middle frame of m of the t time steps: normalised video [B, C, T, H, W] -> [B, m, S, S, 3] in [0, 1]."""
    step = video.shape[2] // times
    middle = video[:, :, step // 2 :: step][:, :, choose_times(times)].float().cpu().permute(0, 2, 3, 4, 1)
    return enlarge((middle * torch.tensor(STD) + torch.tensor(MEAN)).clamp(0, 1).numpy())


def mark(index: Tensor, grid: Grid) -> Tensor:
    """Token indices [M] -> indicator [N, 1], 1 at these tokens."""
    return torch.zeros(grid).flatten().scatter_(0, index.cpu(), 1.0)[:, None]


def spread_tokens(values: Tensor, grid: Grid) -> Images:
    """Token values [N, c] expanded to pixels, at the time steps shown: [m, S, S, c]."""
    return enlarge(values.unflatten(0, grid)[choose_times(grid[0])].numpy())


def choose_times(times: int) -> Tensor:
    """Which of the t time steps are shown: int64 [m]."""
    return torch.linspace(0, times - 1, min(times, MAX_TIMES)).round().long()


def enlarge(images: Images) -> Images:
    """Nearest-neighbour resize: [..., h, w, c] -> [..., S, S, c]."""
    rows, columns = (np.arange(SIDE) * images.shape[axis] // SIDE for axis in (-3, -2))
    wide: Images = images[..., rows, :, :][..., columns, :]
    return wide


def make_sheet(clips: Sequence[Sequence[Row]], grid: Grid, lines: int, margin: int = 10) -> Figure:
    """Labelled rows of frames, with a gap between clips, `lines` of text below and `margin` pixels on the right."""
    width, top = len(clips[0][0][1]) * (SIDE + GAP), 0
    left, above, below = 110, 20, 14 + 17 * lines  # pixels
    blocks, labels = [], []
    for rows in clips:
        for name, images in rows:
            strip = np.ones((SIDE + GAP, width, 3), np.float32)
            for number, image in enumerate(images):
                strip[:SIDE, number * (SIDE + GAP) :][:, :SIDE] = image
            blocks.append(strip)
            labels.append((top + SIDE / 2, name))
            top += SIDE + GAP
        blocks.append(np.ones((2 * GAP, width, 3), np.float32))
        top += 2 * GAP
    whole, tall = max(left + width + margin, 640), above + top + below  # at least as wide as the text below
    figure = Figure(figsize=(whole / 100, tall / 100), facecolor="white")
    axis = figure.add_axes((left / whole, below / tall, width / whole, top / tall))
    axis.imshow(np.concatenate(blocks), interpolation="nearest", aspect="auto")
    axis.set_axis_off()
    for y, name in labels:
        axis.text(-8, y, name, ha="right", va="center", fontsize=9, color=BLUE if name.startswith("clip ") else INK)
    for column, step in enumerate(choose_times(grid[0]).tolist()):
        time = f"time {step + 1} of {grid[0]}"
        axis.text(column * (SIDE + GAP) + SIDE / 2, -7, time, ha="center", va="bottom", fontsize=7, color=INK)
    return figure
