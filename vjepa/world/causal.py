"""A block-causal transformer over the steps of a clip, each step the tokens [action, cells] (V-JEPA 2-AC).

Tokens attend within their step and to earlier steps. 3D rotary positions for the cells, temporal ones for the action.
B clips, t steps, N = h*w cells, D width of a state, A numbers of an action, W width inside, R head width.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vjepa.blocks import Attention, Block, initialise
from vjepa.flops import transformer_flops
from vjepa.positions import Rotation, rotary_rotation, rotate


class CausalAttention(Attention):
    """Self-attention in which the tokens of a step see their own step and those before it."""

    def __init__(self, width: int, heads: int, step_tokens: int) -> None:
        super().__init__(width, heads)
        self.step_tokens = step_tokens

    def forward(self, x: Tensor, rotation: Rotation | None, lengths: Sequence[int] = ()) -> Tensor:
        """x [B, t * step_tokens, W] -> the same shape."""
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        step = torch.arange(x.shape[1], device=x.device) // self.step_tokens
        seen = step[:, None] >= step[None, :]
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        output: Tensor = self.proj(attended.transpose(1, 2).flatten(2))
        return output


class BlockCausal(nn.Module):
    """States [B, t, N, D] and actions [B, t, A] -> the state after each of them, [B, t, N, D]."""

    def __init__(self, options: Any, grid: tuple[int, int], width: int) -> None:
        super().__init__()
        inner, heads = options.width, options.heads
        if inner % heads or inner // heads < 6 or (inner // heads) % 2:
            raise ValueError(
                f"rollout.width must be a multiple of rollout.heads with heads of even width, at least 6, for rotary "
                f"positions; got {inner} and {heads}"
            )
        self.grid, self.action_values = grid, options.action_values
        self.head_width, self.depth = inner // heads, options.depth
        self.tokens = grid[0] * grid[1] + 1
        self.enter = nn.Linear(width, inner)
        self.enter_action = nn.Linear(options.action_values, inner)
        self.blocks = nn.ModuleList(Block(inner, heads, 4.0) for _ in range(options.depth))
        for block in self.blocks:
            block.attn = CausalAttention(inner, heads, self.tokens)
        self.norm = nn.LayerNorm(inner, eps=1e-6)
        self.leave = nn.Linear(inner, width)
        initialise(self)
        nn.init.zeros_(self.leave.weight)

    def forward(self, latents: Tensor, actions: Tensor) -> Tensor:
        """See the class."""
        x = torch.cat([self.enter_action(actions).unsqueeze(2), self.enter(latents)], 2)
        rotation = self._rotation(x)
        x = x.flatten(1, 2)
        for block in self.blocks:
            x = block(x, rotation)
        change: Tensor = self.leave(self.norm(x).unflatten(1, (-1, self.tokens))[:, :, 1:])
        return latents + change

    def count_flops(self) -> float:
        """FLOPs per step of a clip of one step; attention to earlier steps comes on top."""
        inner = self.enter.out_features
        projections = 2.0 * (self.tokens - 1) * 2 * self.enter.weight.numel() + 2 * self.enter_action.weight.numel()
        return transformer_flops(self.tokens, inner, self.depth, 4.0) + projections

    def _rotation(self, x: Tensor) -> Rotation:
        """Rotations of the tokens of x [B, t, 1 + N, W], each [t * (1 + N), R]."""
        steps = x.shape[1]
        cells = rotary_rotation(self.head_width, (steps, *self.grid), "interleaved", x.device)
        action = rotary_rotation(self.head_width, (steps, 1, 1), "interleaved", x.device)
        cosine, sine = (
            torch.cat([first.unsqueeze(1), rest.unflatten(0, (steps, -1))], 1).flatten(0, 1).to(x.dtype)
            for first, rest in zip(action, cells, strict=True)
        )
        return cosine, sine
