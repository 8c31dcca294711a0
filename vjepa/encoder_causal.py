"""LeVJEPA's encoder: a class token that reads the clip, and attention that is causal across frames.

A token attends to all tokens of its own and of earlier time steps; the class token attends to all tokens and no token
attends to it, so nothing of a later frame can reach an earlier one. B clips, (t, h, w) the token grid, N = t*h*w
tokens, K selected tokens, D width, R head width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from vjepa.blocks import Attention, Block, Kept, run_kept
from vjepa.encoder import Encoder, EncoderConfig
from vjepa.positions import Grid, Rotation, rotate
from vjepa.registry import ENCODERS


class MaskedAttention(Attention):
    """Self-attention in which a mask says who attends to whom."""

    def forward(
        self, x: Tensor, rotation: Rotation | None, lengths: Sequence[int] = (), seen: Tensor | None = None
    ) -> Tensor:
        """x [B, K, D], seen [B or 1, 1, K, K] bool (row attends to column; None: all to all) -> [B, K, D]."""
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        output: Tensor = self.proj(attended.transpose(1, 2).flatten(2))
        return output


class MaskedBlock(Block):
    """A transformer block with `MaskedAttention`."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__(width, heads, mlp_ratio)
        self.attn = MaskedAttention(width, heads)

    def forward(
        self,
        x: Tensor,
        rotation: Rotation | None,
        lengths: Sequence[int] = (),
        kept: Kept | None = None,
        seen: Tensor | None = None,
    ) -> Tensor:
        """x [B, K, D] -> [B, K, D]; `kept` as in Block, `seen` as in MaskedAttention."""
        return run_kept(self._run_masked, kept, x, rotation, lengths, seen)

    def _run_masked(self, x: Tensor, rotation: Rotation | None, lengths: Sequence[int], seen: Tensor | None) -> Tensor:
        x = x + self.attn(self.norm1(x), rotation, lengths, seen)
        output: Tensor = x + self.mlp(self.norm2(x))
        return output


@ENCODERS.register("causal")
class CausalEncoder(Encoder):
    """Video ViT with a class token, causal across time steps (LeVJEPA). Its tokens are those of the clip alone."""

    block_class = MaskedBlock

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.shape.width))
        nn.init.trunc_normal_(self.cls_token, std=0.02)

    def read(self, video: Tensor, index: Tensor | None = None) -> Tensor:
        """The class token after the tokens index [B, K] (None: all) of video [B, C, T, H, W] -> [B, D]."""
        return self._encode(video, (len(self.blocks) - 1,), index)[0][:, 0]

    def layers(
        self, video: Tensor, which: Sequence[int], index: Tensor | None = None, lengths: Sequence[int] = ()
    ) -> list[Tensor]:
        """See `Encoder`; the class token is left out."""
        if index is None or len(lengths) < 2:
            return [level[:, 1:] for level in self._encode(video, which, index)]
        parts = [self._encode(video, which, part) for part in index.split(list(lengths), 1)]
        return [torch.cat([level[:, 1:] for level in levels], 1) for levels in zip(*parts, strict=True)]

    def _encode(self, video: Tensor, which: Sequence[int], index: Tensor | None) -> list[Tensor]:
        """Class token and tokens [B, 1 + K, D] after each of the blocks `which`, normalised."""
        wanted = self.find_blocks(which)
        x, rotation, grid = self.place(video, index)
        rotation = None if rotation is None else _with_class(rotation)
        x = torch.cat([self.cls_token.to(x.dtype).expand(len(x), -1, -1), x], 1)
        seen, found = who_sees_whom(grid, index, x.device), {}
        kept = self.config.kept if self.training and torch.is_grad_enabled() else None
        for number, block in enumerate(self.blocks[: max(wanted) + 1]):
            x = block(x, rotation, (), kept, seen)
            if number in wanted:
                found[number] = self.normalise(x, number)
        return [found[number] for number in wanted]


def who_sees_whom(grid: Grid, index: Tensor | None, device: torch.device) -> Tensor:
    """Who attends to whom: [B or 1, 1, 1 + K, 1 + K] bool, the class token first; index [B, K] or None for all."""
    t, h, w = grid
    tokens = torch.arange(t * h * w, device=device).unsqueeze(0) if index is None else index
    step = tokens // (h * w)
    patches = step.unsqueeze(2) >= step.unsqueeze(1)
    seen = functional.pad(patches, (1, 0, 1, 0), value=False)
    seen[:, 0] = True
    return seen.unsqueeze(1)


def _with_class(rotation: Rotation) -> Rotation:
    """A rotation [.., K, R] with a first row that leaves the class token as it is."""
    cosine, sine = rotation
    one, zero = torch.ones_like(cosine[..., :1, :]), torch.zeros_like(sine[..., :1, :])
    return torch.cat([one, cosine], -2), torch.cat([zero, sine], -2)
