"""The transformer blocks of encoder and predictor: pre-norm, optional rotary positions.

B clips, K tokens per clip, D width, R head width. Several selections of a clip's tokens may be concatenated: linear
layers process them together, and each attends only to itself.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from vjepa.positions import Rotation, rotate


class Attention(nn.Module):
    """Multi-head self-attention with optional rotary positions."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, rotation: Rotation | None, lengths: Sequence[int] = ()) -> Tensor:
        """x [B, K, D] -> [B, K, D]; with `lengths` (sum K), each segment attends only to itself."""
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        if len(lengths) < 2:
            attended = attend(query, key, value).transpose(1, 2)
        else:
            segments = zip(*(part.split(lengths, 2) for part in (query, key, value)), strict=True)
            attended = torch.cat([attend(*segment).transpose(1, 2) for segment in segments], 1)
        output: Tensor = self.proj(attended.flatten(2))
        return output


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax attention over [B, heads, K, R].

    On a CPU in bf16 the fused kernel is 1.5 to 6 times slower than explicit matrix products (256 to 72 tokens).
    """
    if query.device.type == "cpu" and query.dtype == torch.bfloat16:
        weights: Tensor = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
        return torch.matmul(weights.softmax(-1), value)
    return functional.scaled_dot_product_attention(query, key, value)


class Mlp(nn.Module):
    """Two layers with a GELU between them. Same as timm's, which takes two seconds to import."""

    def __init__(self, width: int, hidden: int, out: int = 0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, out or width)

    def forward(self, x: Tensor) -> Tensor:
        """x [.., width] -> [.., out]."""
        output: Tensor = self.fc2(functional.gelu(self.fc1(x)))
        return output


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, round(width * mlp_ratio))

    def forward(self, x: Tensor, rotation: Rotation | None, lengths: Sequence[int] = ()) -> Tensor:
        """x [B, K, D] -> [B, K, D]; `lengths` as in Attention."""
        x = x + self.attn(self.norm1(x), rotation, lengths)
        output: Tensor = x + self.mlp(self.norm2(x))
        return output


def run_block(
    block: nn.Module, x: Tensor, rotation: Rotation | None, lengths: Sequence[int], recompute: bool
) -> Tensor:
    """Run one block; with `recompute`, its activations are recomputed in the backward pass."""
    if recompute:
        recomputed: Tensor = checkpoint(block, x, rotation, lengths, use_reentrant=False)
        return recomputed
    output: Tensor = block(x, rotation, lengths)
    return output


def compile_blocks(model: nn.Module) -> None:
    """Compile every block in place, for any number of tokens; blocks of the same shape share a graph."""
    for module in model.modules():
        if isinstance(module, Block):
            module.compile(dynamic=True)


def initialise(model: nn.Module, scaled: bool = True) -> None:
    """Truncated normal 0.02, biases 0; with `scaled`, the outputs of block l (from 1) are divided by sqrt(2 l)."""
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv3d)):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    if not scaled:
        return
    blocks = (module for module in model.modules() if isinstance(module, Block))
    with torch.no_grad():
        for number, block in enumerate(blocks, start=1):
            block.attn.proj.weight.div_(math.sqrt(2 * number))
            block.mlp.fc2.weight.div_(math.sqrt(2 * number))


def check_heads(where: str, width: int, heads: int, positions: str) -> None:
    """Raise ValueError if `width` is not divisible by `heads`, or does not fit its positions."""
    if width % heads:
        raise ValueError(f"{where}.width must be a multiple of {where}.heads, got {width} and {heads}")
    if positions == "sincos_2d" and width % 4:
        raise ValueError(f"{where}.width must be a multiple of 4 for positions=sincos_2d, got {width}")
    if positions == "rotary" and width // heads < 6:
        raise ValueError(f"{where}: rotary positions need heads at least 6 wide, got {width}/{heads}")
