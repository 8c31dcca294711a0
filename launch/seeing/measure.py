"""How close imagined pixels are to the true ones, beside baselines that need no model.

Only hidden tokens count. B clips, M hidden tokens, N tokens, R values of a token, T frames, H W pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from launch.seeing.decoder import DecoderConfig, join_pixels, paste
from launch.seeing.scores import interval
from vjepa.patches import gather_tokens

Numbers = npt.NDArray[np.float64]

MEAN_FRAME = "mean visible frame"


@dataclass(frozen=True)
class Closeness:
    """PSNR in dB and SSIM of each clip, over its hidden pixels: [clips] each."""

    psnr: Numbers
    ssim: Numbers


def measure_pixels(pixels: Tensor, index: Tensor, truth: Tensor, config: DecoderConfig) -> Closeness:
    """Compare pixels [B, M, R] of the hidden tokens index [B, M] with those of truth [B, N, R].

    SSIM is computed on frames whose visible pixels are true, and averaged over the hidden pixels.
    """
    hidden = torch.zeros_like(truth).scatter(1, index.unsqueeze(-1).expand(-1, -1, truth.shape[-1]), 1.0)
    wanted = gather_tokens(truth, index)
    psnr = peak_signal_noise_ratio(pixels.clamp(0, 1), wanted, 1.0, reduction="none", dim=(1, 2))
    shown, true, where = (
        join_pixels(tokens, config).flatten(0, 1).permute(0, 3, 1, 2)
        for tokens in (paste(pixels, index, truth), truth, hidden)
    )
    _, similar = structural_similarity_index_measure(
        shown, true, data_range=1.0, reduction="none", return_full_image=True
    )
    clips = len(truth)
    weight = where.reshape(clips, -1)
    ssim = (similar.reshape(clips, -1) * weight).sum(1) / weight.sum(1)
    return Closeness(psnr.double().numpy(), ssim.double().numpy())


def cheap_guesses(truth: Tensor, index: Tensor, config: DecoderConfig) -> dict[str, Tensor]:
    """Pixels of the hidden tokens guessed from the visible ones of truth [B, N, R], without a model: [B, M, R] each.

    At a position that is hidden in all frames, both guesses are the mean colour of the visible tokens.
    """
    clips, tokens, values = truth.shape
    t, h, w = config.grid
    steps = truth.view(clips, t, h * w, 3, config.tubelet, -1)
    seen = torch.ones(clips, tokens).scatter(1, index, 0.0).view(clips, t, h * w)
    weight = seen[..., None, None, None]
    colour = (steps * weight).sum((1, 2, 4, 5)) / (weight.sum((1, 2, 4, 5)) * steps.shape[4] * steps.shape[5])
    fallback = colour[:, None, :, None, None].expand(-1, h * w, -1, 1, steps.shape[-1])
    ever = (seen.sum(1) > 0)[..., None, None, None]
    mean = (steps * weight).sum(1).mean(3, keepdim=True) / weight.sum(1).clamp(min=1)
    mean = torch.where(ever, mean, fallback)[:, None].expand(-1, t, -1, -1, config.tubelet, -1)
    nearest = torch.where(ever[:, None], _nearest(steps, seen), fallback[:, None].expand_as(steps))
    return {
        MEAN_FRAME: gather_tokens(mean.reshape(clips, tokens, values), index),
        "nearest visible frame": gather_tokens(nearest.reshape(clips, tokens, values), index),
    }


def _nearest(steps: Tensor, seen: Tensor) -> Tensor:
    """At every step and position, the frame closest in time that is visible there: steps [B, t, P, 3, tubelet, q]."""
    t = steps.shape[1]
    time = torch.arange(t)
    distance = (time[:, None] - time[None]).abs().float()
    far = distance[None, :, :, None] + 1e6 * (1 - seen[:, None])  # [B, at, from, P]
    source = far.argmin(2)
    picked = steps.gather(1, source[..., None, None, None].expand_as(steps))
    later = (source > time[None, :, None])[..., None, None, None]
    return torch.where(later, picked[..., :1, :], picked[..., -1:, :]).expand_as(steps)


def summarise(
    found: Mapping[str, Closeness], labels: Sequence[int], classes: Sequence[str], seed: int = 0
) -> list[dict[str, Any]]:
    """Rows of the results: mean PSNR and SSIM with 95 % bootstrap intervals over clips, for all clips and each class.

    `gain` is the mean difference in PSNR to the mean visible frame, paired by clip.
    """
    groups = {"all": np.arange(len(labels))}
    numbers = np.asarray(labels)
    groups |= {name: np.flatnonzero(numbers == number) for number, name in enumerate(classes)}
    rows = []
    for group, members in groups.items():
        if not len(members):
            continue
        for name, close in found.items():
            gain = close.psnr - found[MEAN_FRAME].psnr
            measured = {"psnr": close.psnr, "ssim": close.ssim, "gain": gain}
            row: dict[str, Any] = {"features": name, "class": group, "clips": len(members)}
            for measure, values in measured.items():
                mean, low, high = interval(values[members], seed)
                row |= {measure: mean, f"{measure}_interval": [low, high]}
            rows.append(row)
    return rows
