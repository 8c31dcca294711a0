"""Normalise stored pixels for the encoder."""

import torch
from torch import Tensor

# ImageNet's statistics of red, green, blue in [0, 1]
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
_COPIES: dict[torch.device, tuple[Tensor, Tensor]] = {}  # per device: copying in every step would synchronise


def normalise(clips: Tensor) -> Tensor:
    """Clips uint8 [B, T, H, W, C] -> float32 [B, C, T, H, W], each colour channel standardised."""
    if clips.dtype != torch.uint8 or clips.shape[-1] != 3:
        raise ValueError(f"clips must be uint8 [B, T, H, W, 3], got {clips.dtype} {list(clips.shape)}")
    mean, scale = _statistics(clips.device)
    return ((clips.float() - mean) * scale).permute(0, 4, 1, 2, 3)


def _statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and inverse standard deviation of each colour channel, for pixel values 0 to 255."""
    found = _COPIES.get(device)
    if found is None:
        with torch.inference_mode(False):
            mean, deviation = torch.tensor(MEAN) * 255, torch.tensor(STD) * 255
            found = mean.to(device), (1 / deviation).to(device)
        if type(found[0]) is Tensor:  # do not cache the fake tensors of an export trace
            _COPIES[device] = found
    return found
