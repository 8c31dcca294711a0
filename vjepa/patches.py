"""Tubelets of a clip and their tokens: patchify, embed, gather.

B clips, C channels, T frames, H W pixels, N tokens, K tokens kept, D width.
"""

from torch import Tensor, nn
from torch.nn import functional

from vjepa.positions import Grid


def gather_tokens(x: Tensor, index: Tensor) -> Tensor:
    """Pick tokens: x [B, N, D], index [B, K] -> [B, K, D]."""
    return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def cut_patches(video: Tensor, tubelet: int, patch: int) -> Tensor:
    """Patchify a clip, one row per tubelet: video [B, C, T, H, W] -> [B, N, C * tubelet * patch * patch]."""
    cut = video.unflatten(4, (-1, patch)).unflatten(3, (-1, patch)).unflatten(2, (-1, tubelet))
    patches: Tensor = cut.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).flatten(1, 3)
    return patches


class PatchEmbedding(nn.Module):
    """Tubelets to vectors. The weight has the shape of a 3D convolution, computed as one matrix multiplication."""

    def __init__(self, patch: int, tubelet: int, width: int) -> None:
        super().__init__()
        self.patch, self.tubelet = patch, tubelet
        size = (tubelet, patch, patch)
        self.proj = nn.Conv3d(3, width, kernel_size=size, stride=size)

    def grid(self, video: Tensor) -> Grid:
        """Token grid of video [B, C, T, H, W]; ValueError if its size is not divisible by the tubelet and the patch."""
        frames, height, width = video.shape[2:]
        if frames % self.tubelet or height % self.patch or width % self.patch:
            raise ValueError(
                f"a clip must have a multiple of {self.tubelet} frames and sides that are multiples of {self.patch} "
                f"pixels, got {frames} frames of {height}x{width}"
            )
        return frames // self.tubelet, height // self.patch, width // self.patch

    def forward(self, video: Tensor, index: Tensor | None = None) -> Tensor:
        """video [B, C, T, H, W], index [B, K] or None -> [B, K or N, D]."""
        self.grid(video)  # raises if the clip is not divisible
        patches = cut_patches(video, self.tubelet, self.patch)
        if index is not None:
            patches = gather_tokens(patches, index)
        embedded: Tensor = functional.linear(patches, self.proj.weight.flatten(1), self.proj.bias)
        return embedded
