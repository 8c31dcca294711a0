"""Random numbers per clip as a pure function of (seed, stream position, counter), computed on the device."""

import torch
from torch import Tensor


class ClipRandom:
    """Uniform random numbers per clip, by stream position [B]: counters hashed with splitmix64's finaliser."""

    def __init__(self, seed: int, clips: Tensor) -> None:
        seeded = _mix(torch.tensor(seed, dtype=torch.int64) + _signed(0x9E3779B97F4A7C15))
        self.state = _mix(_mix(clips) + seeded)
        self.counter = 0

    def uniform(self, *shape: int) -> Tensor:
        """Numbers in [0, 1) with 24 random bits: [B, *shape] float32."""
        count = torch.Size(shape).numel()
        steps = torch.arange(self.counter + 1, self.counter + count + 1, device=self.state.device)
        self.counter += count
        bits = _mix(self.state[:, None] + steps * _signed(0x9E3779B97F4A7C15))
        return ((bits >> 40) & 0xFFFFFF).float().mul_(2.0**-24).view(-1, *shape)

    def between(self, limits: tuple[float, float], *shape: int) -> Tensor:
        """Numbers in [low, high): [B, *shape]."""
        low, high = limits
        return low + (high - low) * self.uniform(*shape)


def _mix(x: Tensor) -> Tensor:
    """splitmix64's finaliser on int64 (Steele, Lea and Flood 2014); products wrap around."""
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * _signed(0x94D049BB133111EB)
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


def _signed(value: int) -> int:
    """An unsigned 64-bit constant reinterpreted as a signed one."""
    return value - 2**64 if value >= 2**63 else value
