"""Predictors of the next state from a state and an action.

B states, T frames of a clip, N cells of a state (h x w), D width, A numbers of an action.
"""

from abc import ABC, abstractmethod
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from vjepa.registry import DYNAMICS
from vjepa.world.causal import BlockCausal


class Dynamics(nn.Module, ABC):
    """One step into the future: state and memory, action -> state and memory.

    `memory` [B, ...] is whatever a predictor keeps of earlier steps; most keep nothing, [B, 0].
    A subclass is built from (options, grid of a state (h, w), D); `options` is a `vjepa.world.model.WorldOptions`.
    """

    def begin(self, latent: Tensor) -> Tensor:
        """The memory of states [B, N, D] without a past."""
        return latent.new_zeros(len(latent), 0)

    @abstractmethod
    def forward(self, latent: Tensor, memory: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """States [B, N, D] and their memory after actions [B, A]."""

    @abstractmethod
    def count_flops(self) -> float:
        """FLOPs of a step of one state."""

    def teach(self, latents: Tensor, actions: Tensor) -> Tensor:
        """Each next state predicted from the true states up to it: [B, T, N, D], [B, T-1, A] -> [B, T-1, N, D]."""
        memory, found = self.begin(latents[:, 0]), []
        for step in range(actions.shape[1]):
            latent, memory = self(latents[:, step], memory, actions[:, step])
            found.append(latent)
        return torch.stack(found, 1)


class Memoryless(Dynamics):
    """A predictor that sees nothing but the present state: all steps of a clip are taught in one call."""

    @abstractmethod
    def move(self, latent: Tensor, action: Tensor) -> Tensor:
        """States [B, N, D] after actions [B, A]."""

    def forward(self, latent: Tensor, memory: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """See `Dynamics`."""
        return self.move(latent, action), memory

    def teach(self, latents: Tensor, actions: Tensor) -> Tensor:
        """See `Dynamics`."""
        moved: Tensor = self.move(latents[:, :-1].flatten(0, 1), actions.flatten(0, 1)).unflatten(0, actions.shape[:2])
        return moved


@DYNAMICS.register("mlp")
class MlpDynamics(Memoryless):
    """z + MLP([z, a]) on the flattened state; the last layer starts at zero, so that at first nothing moves."""

    def __init__(self, options: Any, grid: tuple[int, int], width: int) -> None:
        super().__init__()
        inner = grid[0] * grid[1] * width
        sizes = [inner + options.action_values, *[options.width] * options.depth]
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes):
            layers += [nn.Linear(before, after), nn.GELU()]
        self.layers = nn.Sequential(*layers, start_at_zero(nn.Linear(sizes[-1], inner)))

    def move(self, latent: Tensor, action: Tensor) -> Tensor:
        """See `Memoryless`."""
        change: Tensor = self.layers(torch.cat([latent.flatten(1), action], 1))
        return latent + change.view_as(latent)

    def count_flops(self) -> float:
        """See `Dynamics`."""
        return count_linear(self)


@DYNAMICS.register("gru")
class GruDynamics(Dynamics):
    """A recurrent predictor: its memory summarises the states and actions so far, z + W h is the next state."""

    def __init__(self, options: Any, grid: tuple[int, int], width: int) -> None:
        super().__init__()
        inner = grid[0] * grid[1] * width
        self.cell = nn.GRUCell(inner + options.action_values, options.width)
        self.head = start_at_zero(nn.Linear(options.width, inner))

    def begin(self, latent: Tensor) -> Tensor:
        """See `Dynamics`: zeros [B, width]."""
        return latent.new_zeros(len(latent), self.cell.hidden_size)

    def forward(self, latent: Tensor, memory: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """See `Dynamics`."""
        memory = self.cell(torch.cat([latent.flatten(1), action], 1), memory)
        return latent + self.head(memory).view_as(latent), memory

    def count_flops(self) -> float:
        """See `Dynamics`."""
        return 2.0 * (self.cell.weight_ih.numel() + self.cell.weight_hh.numel()) + count_linear(self)


@DYNAMICS.register("conv")
class ConvDynamics(Memoryless):
    """z + convolutions over the map of cells; the action scales and shifts the channels of every layer."""

    def __init__(self, options: Any, grid: tuple[int, int], width: int) -> None:
        super().__init__()
        self.grid, inner = grid, options.width
        if grid == (1, 1):
            raise ValueError(
                "rollout.predictor=conv needs a map of cells; set encoder.patch below data.crop, or use mlp"
            )
        rows, columns = torch.meshgrid(*(torch.linspace(-1, 1, side) for side in grid), indexing="ij")
        self.register_buffer("places", torch.stack([rows, columns]), persistent=False)
        self.first = nn.Conv2d(width + 2, inner, 3, padding=1)
        self.layers = nn.ModuleList(nn.Conv2d(inner, inner, 3, padding=1) for _ in range(options.depth))
        self.norms = nn.ModuleList(nn.GroupNorm(4, inner) for _ in range(options.depth + 1))
        self.action = nn.Sequential(nn.Linear(options.action_values, 64), nn.GELU(), nn.Linear(64, 2 * inner))
        self.last = start_at_zero(nn.Conv2d(inner, width, 1))

    def move(self, latent: Tensor, action: Tensor) -> Tensor:
        """See `Memoryless`."""
        cells = latent.transpose(1, 2).unflatten(2, self.grid)
        places = self.get_buffer("places").expand(len(cells), -1, -1, -1)
        scale, shift = self.action(action)[:, :, None, None].chunk(2, 1)
        x = self.first(torch.cat([cells, places], 1))
        x = nn.functional.gelu(self.norms[0](x) * (1 + scale) + shift)
        for layer, norm in zip(self.layers, self.norms[1:], strict=True):
            x = x + nn.functional.gelu(norm(layer(x)) * (1 + scale) + shift)
        change: Tensor = self.last(x)
        return latent + change.flatten(2).transpose(1, 2)

    def count_flops(self) -> float:
        """See `Dynamics`."""
        convolutions = sum(module.weight.numel() for module in self.modules() if isinstance(module, nn.Conv2d))
        return 2.0 * convolutions * self.grid[0] * self.grid[1] + count_linear(self.action)


@DYNAMICS.register("transformer")
class TransformerDynamics(Dynamics):
    """Block-causal attention over [action, cells] of the steps so far, as in V-JEPA 2-AC; see `BlockCausal`.

    Its memory is the sequence of (state, action) pairs, [B, steps, N*D + A], at most `history` of them.
    """

    def __init__(self, options: Any, grid: tuple[int, int], width: int) -> None:
        super().__init__()
        self.history, self.cells = options.history, grid[0] * grid[1] * width
        self.network = BlockCausal(options, grid, width)

    def begin(self, latent: Tensor) -> Tensor:
        """See `Dynamics`: no steps yet."""
        return latent.new_zeros(len(latent), 0, self.cells + self.network.action_values)

    def forward(self, latent: Tensor, memory: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """See `Dynamics`."""
        step = torch.cat([latent.flatten(1), action], 1).unsqueeze(1)
        memory = torch.cat([memory, step], 1)[:, -self.history :]
        latents = memory[..., : self.cells].unflatten(2, latent.shape[1:])
        following: Tensor = self.network(latents, memory[..., self.cells :])
        return following[:, -1], memory

    def teach(self, latents: Tensor, actions: Tensor) -> Tensor:
        """See `Dynamics`: one pass over the clip, which must not be longer than the history."""
        if actions.shape[1] > self.history:
            return super().teach(latents, actions)
        following: Tensor = self.network(latents[:, :-1], actions)
        return following

    def count_flops(self) -> float:
        """See `Dynamics`."""
        return self.network.count_flops()


def start_at_zero(layer: Any) -> Any:
    """The layer with weights and bias 0."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def count_linear(module: nn.Module) -> float:
    """FLOPs of one row through all linear layers of a module."""
    return 2.0 * sum(layer.weight.numel() for layer in module.modules() if isinstance(layer, nn.Linear))
