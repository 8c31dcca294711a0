"""A weight that finds itself: the regulariser is strengthened while features shrink, and relaxed while they do not.

The variance hinge h is the mean shortfall of the channels' standard deviations from 1. For features of rank r in D
channels VICReg's terms, weighted v and c, settle at a standard deviation of (r v / 4 c D)^(1/3). So at a fixed ratio of
v to c the hinge measures the rank: at 25 to 1 and D = 128, h = 0.5 means a rank of 2.6, and h = 0.1 one of 15. Holding
it at a goal is dual ascent on the constraint h <= goal: log weight += rate * (h - goal).
"""

import math

import torch
from torch import Tensor, nn

from vjepa.ranks import sum_over_ranks

GOAL, RATE = 0.1, 0.05  # shortfall that is aimed at; change of the log weight per step and unit of excess
BOUNDS = (0.1, 10.0)  # smallest and largest factor


class Balance(nn.Module):
    """The factor of all terms, part of the checkpoint; equal on all ranks."""

    log_factor: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("log_factor", torch.zeros(()))

    @property
    def factor(self) -> Tensor:
        """The current factor, a scalar."""
        return self.log_factor.exp()

    @torch.no_grad()
    def follow(self, hinge: Tensor) -> None:
        """Move the factor by what this step's hinge says, averaged over all ranks."""
        total, ranks = sum_over_ranks(torch.stack([hinge.detach().float(), hinge.new_ones((), dtype=torch.float32)]))
        low, high = BOUNDS
        self.log_factor.add_(RATE * (total / ranks - GOAL)).clamp_(math.log(low), math.log(high))
