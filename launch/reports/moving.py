"""Moving pictures for a page: clips as small animations that a browser plays by itself, in grids that fit a phone.

B clips, T frames, H W pixels, (t, h, w) the token grid, N = t*h*w, D width.
"""

import base64
import html
import io
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from launch.reports.pictures import feature_colours, mask_clips
from vjepa.encoder import Encoder
from vjepa.masks import MaskConfig
from vjepa.pixels import normalise

SIDE = 112  # pixels of the shorter side
FRAMES = 16  # at most, evenly spaced
FPS, PAUSE = 8, 700  # frames per second, and milliseconds on the last one


def embed_clip(clip: Tensor, alternative: str) -> str:
    """A clip uint8 [T, H, W, 3] as an <img> that plays for ever: animated WebP, a few kilobytes."""
    index = np.linspace(0, len(clip) - 1, min(FRAMES, len(clip))).round().astype(int)
    pictures = [_resize(clip[number].numpy()) for number in index]
    buffer, times = io.BytesIO(), [round(1000 / FPS)] * (len(pictures) - 1) + [PAUSE]
    more = {"append_images": pictures[1:], "save_all": True, "duration": times, "loop": 0}
    pictures[0].save(buffer, "WEBP", quality=70, method=4, **more)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img class="clip" alt="{html.escape(alternative)}" src="data:image/webp;base64,{data}">'


def figure_of(clip: Tensor, caption: str, mark: str = "") -> str:
    """A clip as a <figure> with its caption below; `mark`: a CSS class."""
    shown = f' class="{mark}"' if mark else ""
    return f"<figure{shown}>{embed_clip(clip, caption)}<figcaption>{html.escape(caption)}</figcaption></figure>"


def rows_of(rows: Sequence[Sequence[str]]) -> str:
    """Rows of figures; a row that is too long for the page wraps."""
    return "".join(f'<div class="thumbs">{"".join(row)}</div>' for row in rows)


def show_masks(clips: Tensor, names: Sequence[str], masks: Mapping[str, MaskConfig], encoder: Encoder) -> str:
    """Clips uint8 [B, T, H, W, 3], one per row, and next to each what the context encoder sees under each mask."""
    seen = {name: mask_clips(clips, mask, number, encoder) for number, (name, mask) in enumerate(masks.items())}
    return rows_of(
        [
            [figure_of(clips[row], title, "first"), *(figure_of(shown[row], name) for name, shown in seen.items())]
            for row, title in enumerate(names)
        ]
    )


def show_features(clips: Tensor, names: Sequence[str], encoder: Encoder) -> str:
    """Clips uint8 [B, T, H, W, 3], each beside its features: three principal components as red, green and blue.

    The mean of each position over the clips is subtracted first, so the colours show content, not position.
    """
    with torch.no_grad():
        colours = feature_colours(encoder(normalise(clips)))  # [B, N, 3]
    volume = colours.unflatten(1, encoder.config.grid).permute(0, 4, 1, 2, 3)  # [B, 3, t, h, w]
    size = (clips.shape[1], SIDE, SIDE)
    smooth = functional.interpolate(volume, size=size, mode="trilinear", align_corners=False)
    frames = (255 * smooth.clamp(0, 1)).round().to(torch.uint8).permute(0, 2, 3, 4, 1)
    pairs = [f"{figure_of(clip, name, 'first')}{figure_of(part, 'features')}" for clip, name, part in
             zip(clips, names, frames, strict=True)]  # fmt: skip
    return f'<div class="pairs">{"".join(f"<div>{pair}</div>" for pair in pairs)}</div>'


def _resize(frame: npt.NDArray[np.uint8]) -> Image.Image:
    picture = Image.fromarray(frame)
    scale = SIDE / min(picture.size)
    size = (round(picture.width * scale), round(picture.height * scale))
    return picture.resize(size, Image.Resampling.BICUBIC)
