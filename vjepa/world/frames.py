"""Encoding frames one by one: a convolutional encoder, and any other encoder applied to single frames.

The state of a world model is one frame: an encoder that attends to the whole clip would leak the future into it.
B clips, C channels, T frames, H W pixels, (h, w) the grid of a frame, N = h*w cells, D width.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vjepa.encoder import EncoderConfig
from vjepa.positions import Grid
from vjepa.registry import ENCODERS

CHANNELS = 16  # of the first stage; doubled at every further one


@ENCODERS.register("conv")
class ConvEncoder(nn.Module):
    """Strided convolutions over single frames; `depth` stages after an average pooling of 2 pixels.

    With `patch` equal to `crop` a frame becomes one vector (all stages halve the map, which is then flattened and
    projected), otherwise a map of cells of `patch` pixels. Raises ValueError for sizes that do not fit.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config, depth = config, config.shape.depth
        if config.tubelet != 1:
            raise ValueError(
                f"encoder.tubelet must be 1 with encoder.kind=conv, which encodes frames, got {config.tubelet}"
            )
        halvings = count_halvings(config)
        layers: list[nn.Module] = []
        before = 3
        for stage in range(depth):
            channels, kernel = CHANNELS * 2**stage, 5 if stage == 0 else 3
            stride = 2 if stage < halvings else 1
            layers += [nn.Conv2d(before, channels, kernel, stride, kernel // 2), nn.GroupNorm(4, channels), nn.GELU()]
            before = channels
        if config.patch == config.crop:
            side = config.crop // 2 ** (depth + 1)
            layers += [nn.Flatten(), nn.Linear(before * side * side, config.shape.width), nn.Unflatten(1, (-1, 1, 1))]
        else:
            layers.append(nn.Conv2d(before, config.shape.width, 1))
        self.layers_of_frame = nn.Sequential(*layers)

    def forward(self, video: Tensor, index: Tensor | None = None) -> Tensor:
        """video [B, C, T, H, W] -> [B, T*N, D]; ValueError for a selection of tokens or another size of frames."""
        if index is not None:
            raise ValueError(
                "encoder.kind=conv encodes whole frames and cannot leave out tokens; use it with objective=rollout"
            )
        crop = self.config.crop
        if video.shape[-2:] != (crop, crop):
            raise ValueError(f"encoder.kind=conv takes frames of {crop} x {crop} pixels, got {list(video.shape[-2:])}")
        frames = functional.avg_pool2d(video.transpose(1, 2).flatten(0, 1), 2)
        cells: Tensor = self.layers_of_frame(frames).flatten(2).transpose(1, 2)
        tokens: Tensor = cells.unflatten(0, (len(video), -1)).flatten(1, 2)
        return tokens

    def token_grid(self, video: Tensor) -> Grid:
        """Grid of the tokens of video [B, C, T, H, W]."""
        side = self.config.crop // self.config.patch
        return video.shape[2], side, side

    @classmethod
    def flops(cls, config: EncoderConfig, tokens: int) -> float:
        """FLOPs of a forward pass over the frames that hold `tokens` tokens."""
        side, before, total = config.crop // 2, 3, 0.0
        for stage in range(config.shape.depth):
            side = side // 2 if stage < count_halvings(config) else side
            channels, kernel = CHANNELS * 2**stage, 5 if stage == 0 else 3
            total += 2 * side * side * before * channels * kernel**2
            before = channels
        total += 2 * side * side * before * config.shape.width
        return total * tokens / (config.crop // config.patch) ** 2


def count_halvings(config: EncoderConfig) -> int:
    """Stages with stride 2; ValueError if `depth` stages cannot reach the grid that patch and crop define."""
    depth, patch, crop = config.shape.depth, config.patch, config.crop
    if patch == crop:
        if crop % 2 ** (depth + 1):
            raise ValueError(
                f"encoder.kind=conv with encoder.depth={depth} needs data.crop divisible by {2 ** (depth + 1)}, "
                f"got {crop}; lower encoder.depth"
            )
        return depth
    halvings = patch.bit_length() - 2
    if patch < 2 or patch & (patch - 1) or halvings > depth:
        raise ValueError(
            f"encoder.kind=conv with encoder.depth={depth} needs encoder.patch to be data.crop (a vector) or a power "
            f"of 2 from 2 to {2 ** (depth + 1)} (a map), got {patch}"
        )
    return halvings


def encode_frames(encoder: Any, video: Tensor) -> Tensor:
    """Features of every frame alone: video [B, C, T, H, W] -> [B, T, N, D].

    An encoder with tubelets of several frames sees each frame repeated, as in V-JEPA 2-AC.
    """
    frames = video.transpose(1, 2).flatten(0, 1).unsqueeze(2)
    tubelet = encoder.config.tubelet
    if tubelet > 1:
        frames = frames.expand(-1, -1, tubelet, -1, -1)
    features: Tensor = encoder(frames).unflatten(0, (len(video), -1))
    return features


def within_clip_share(rows: Tensor) -> Tensor:
    """Share of the variance of rows [B, T, R] that is within clips, from 0 (a clip is one point) to 1 -> scalar."""
    centred = rows - rows.mean((0, 1))
    moved = rows - rows.mean(1, keepdim=True)
    share: Tensor = moved.square().sum() / centred.square().sum().clamp(min=torch.finfo(rows.dtype).tiny)
    return share
