"""The transformer blocks of encoder and predictor: pre-norm, optional rotary positions.

B clips, K tokens per clip, D width, R head width. Several selections of a clip's tokens may be concatenated: linear
layers process them together, and each attends only to itself.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from vjepa.attention import attend
from vjepa.positions import Rotation, rotate

Kept = Literal["nothing", "products"]  # what a block keeps for the backward pass if its activations are recomputed
PRODUCTS = [
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
]
keep_products = partial(create_selective_checkpoint_contexts, PRODUCTS)
GRAPHS = 64  # limit on the graphs compiled of one function; torch's, 8, is close to what a step needs


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

    def forward(
        self, x: Tensor, rotation: Rotation | None, lengths: Sequence[int] = (), kept: Kept | None = None
    ) -> Tensor:
        """x [B, K, D] -> [B, K, D]; `lengths` as in Attention.

        With `kept`, activations are recomputed in the backward pass, except what is kept.
        """
        return run_kept(self._run, kept, x, rotation, lengths)

    def _run(self, x: Tensor, rotation: Rotation | None, lengths: Sequence[int]) -> Tensor:
        x = x + self.attn(self.norm1(x), rotation, lengths)
        output: Tensor = x + self.mlp(self.norm2(x))
        return output


def run_kept(run: Callable[..., Tensor], kept: Kept | None, *arguments: Any) -> Tensor:
    """The result of a function without randomness, whose activations are recomputed, except those `kept`; None: all."""
    output: Tensor
    if kept is None:
        output = run(*arguments)
    elif kept == "nothing":
        output = checkpoint(run, *arguments, use_reentrant=False, preserve_rng_state=False)
    else:
        output = checkpoint(run, *arguments, use_reentrant=False, preserve_rng_state=False, context_fn=keep_products)
    return output


def run_block(
    block: nn.Module, x: Tensor, rotation: Rotation | None, lengths: Sequence[int], kept: Kept | None
) -> Tensor:
    """Run one block; with `kept`, its activations are recomputed in the backward pass, except what is kept.

    A block that is not a `Block` may draw random numbers: it draws the same ones again, and keeps nothing.
    """
    output: Tensor
    if isinstance(block, Block):
        output = block(x, rotation, lengths, kept)
    elif kept is not None:
        output = checkpoint(block, x, rotation, lengths, use_reentrant=False)
    else:
        output = block(x, rotation, lengths)
    return output


def compile_blocks(model: nn.Module, static: bool = False, backend: str | Callable[..., Any] = "inductor") -> None:
    """Compile every block in place; blocks of the same shape share a graph.

    The graphs serve any number of tokens or, with `static`, are compiled for each number: faster, if few occur.
    """
    from torch._dynamo import config  # local import: slow, and only needed when compiling

    # DDP's splitting of graphs into buckets would cut each block into several graphs and gain nothing: the buckets
    # already overlap with the backward passes of the blocks.
    config.optimize_ddp = False
    for name in ("recompile_limit", "cache_size_limit"):  # the second is its name in older versions of torch
        if hasattr(config, name):
            setattr(config, name, max(GRAPHS, getattr(config, name)))
            break
    for module in model.modules():
        if isinstance(module, Block):
            module.compile(dynamic=not static, backend=backend)


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
