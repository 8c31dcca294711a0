"""From stored pixels to what an encoder sees."""

import torch
from torch import Tensor

# ImageNet's statistics of red, green, blue in [0, 1]
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def normalise(clips: Tensor) -> Tensor:
    """Clips uint8 [B, T, H, W, C] -> float32 [B, C, T, H, W], each colour channel standardised."""
    if clips.dtype != torch.uint8 or clips.shape[-1] != 3:
        raise ValueError(f"clips must be uint8 [B, T, H, W, 3], got {clips.dtype} {list(clips.shape)}")
    mean = torch.tensor(MEAN, device=clips.device) * 255
    scale = 1 / (torch.tensor(STD, device=clips.device) * 255)
    return ((clips.float() - mean) * scale).permute(0, 4, 1, 2, 3)
