"""A small variable z for what the context does not determine: several futures for one past.

In training z is inferred from the target; otherwise it is drawn from its prior, a standard normal. Its capacity must be
limited, by noise and KL, by sparsity or by few dimensions: else z carries the target, and draws of the prior mean
nothing.
B clips, K context tokens, M target tokens, W target width, P predictor width, Z dimensions of z.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vjepa.blocks import Mlp
from vjepa.masks import ClipRandom
from vjepa.positions import Grid, sincos_table

_NARROW = -4.0  # log variance of z at the start
_STREAM = 504  # masks hash (seed * 1009 + kind); z must not reuse their numbers


@dataclass(frozen=True)
class LatentConfig:
    """The variable z, one vector for each clip and mask, and what limits it."""

    dims: int | None = None  # Z; null: no variable, the predictor is deterministic
    noise: bool = True  # z is drawn around its inferred mean; false: it is the mean
    kl: float = 0.01  # weight of KL(inferred | prior) in nats per clip; without noise, of |z|^2 / 2
    sparsity: float = 0.0  # weight of the sum of |inferred mean| over dimensions

    def __post_init__(self) -> None:
        if self.dims is not None and self.dims < 1:
            raise ValueError(f"predictor.latent.dims must be at least 1, or null for no variable, got {self.dims}")
        if self.kl < 0 or self.sparsity < 0:
            raise ValueError(
                f"predictor.latent.kl and predictor.latent.sparsity must not be negative, got {self.kl} and "
                f"{self.sparsity}"
            )


class Posterior(NamedTuple):
    """A normal distribution of z for each clip: [B, Z] each."""

    mean: Tensor
    log_variance: Tensor

    def kl(self) -> Tensor:
        """KL divergence from the standard normal in nats: [B]."""
        inner = self.mean.square() + self.log_variance.exp() - self.log_variance - 1
        return inner.sum(-1) / 2


class LatentVariable(nn.Module):
    """Infers z from target and context, and turns it into a vector that is added to the mask tokens."""

    def __init__(self, config: LatentConfig, width: int, target_width: int) -> None:
        super().__init__()
        if config.dims is None:
            raise ValueError("predictor.latent.dims must be set to build a latent variable, got null")
        self.config, self.dims = config, config.dims
        self.embed = nn.Linear(target_width, width)
        self.token = Mlp(width, 2 * width, width)
        self.head = nn.Linear(2 * width, 2 * config.dims)
        self.expand = nn.Linear(config.dims, width)
        self._tables: dict[tuple[Grid, str], Tensor] = {}

    @torch.no_grad()
    def start_informative(self) -> None:
        """Initial weights with which z says something about the target: narrow distributions with different means.

        From distributions as wide as the prior, z would be noise at first, and training would learn to ignore it.
        """
        nn.init.normal_(self.head.weight[: self.dims], std=self.head.in_features**-0.5)
        nn.init.constant_(self.head.bias[self.dims :], _NARROW)
        nn.init.normal_(self.embed.weight, std=self.embed.in_features**-0.5)
        nn.init.normal_(self.token.fc1.weight, std=self.token.fc1.in_features**-0.5)
        nn.init.normal_(self.token.fc2.weight, std=self.token.fc2.in_features**-0.5)
        nn.init.normal_(self.expand.weight, std=self.dims**-0.5)

    def infer(self, target: Tensor, index: Tensor, context: Tensor, grid: Grid) -> Posterior:
        """The distribution of z given targets [B, M, W] at token index [B, M] and the embedded context [B, K, P]."""
        x = self.token(self.embed(target.to(self.embed.weight.dtype)) + self._positions(grid, context)[index])
        mean, log_variance = self.head(torch.cat([x.mean(1), context.mean(1)], -1)).float().chunk(2, -1)
        return Posterior(mean, log_variance.clamp(-8, 4) if self.config.noise else torch.zeros_like(mean))

    def draw(self, found: Posterior, normal: Tensor) -> Tensor:
        """z from its distribution and standard normal numbers [B, Z]: [B, Z]."""
        return found.mean + (0.5 * found.log_variance).exp() * normal if self.config.noise else found.mean

    def penalty(self, found: Posterior) -> Tensor:
        """What limits the capacity of z: the mean over clips, scalar."""
        penalty = self.config.kl * found.kl() + self.config.sparsity * found.mean.abs().sum(-1)
        return penalty.mean()

    def forward(self, z: Tensor) -> Tensor:
        """z [B, Z] -> what is added to the mask tokens, [B, 1, P]."""
        added: Tensor = self.expand(z.to(self.expand.weight.dtype))
        return added.unsqueeze(1)

    def _positions(self, grid: Grid, like: Tensor) -> Tensor:
        key = (grid, str(like.device))
        if key not in self._tables:
            self._tables[key] = sincos_table(self.embed.out_features, grid).to(like.device)
        return self._tables[key].to(like.dtype)


def normal_numbers(samples: Tensor, seed: int, kind: int, dims: int) -> Tensor:
    """Standard normal numbers of the clips at stream positions `samples` [B]: [B, dims], the same after a resume."""
    uniform = ClipRandom(seed * 1009 + _STREAM + kind, samples).uniform(dims)
    return torch.erfinv((2 * uniform - 1).clamp(-1 + 2**-23, 1 - 2**-23)) * 2**0.5


def minimise_energy(energy: Callable[[Tensor], Tensor], start: Tensor, steps: int, rate: float = 0.1) -> Tensor:
    """The z [B, Z] of lowest energy [B] met by Adam from `start`: inference of z where the target is known."""
    z = start.detach().clone().requires_grad_(True)
    optimiser = torch.optim.Adam([z], lr=rate)
    best, lowest = start.detach().clone(), torch.full((len(start),), torch.inf, device=start.device)
    for step in range(steps + 1):
        with torch.enable_grad():
            found = energy(z)
            better = (found < lowest).unsqueeze(-1)
            best, lowest = torch.where(better, z.detach(), best), torch.minimum(lowest, found.detach())
            if step < steps:
                optimiser.zero_grad()
                found.sum().backward()
                optimiser.step()
    return best
