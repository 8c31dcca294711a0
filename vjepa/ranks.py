"""A differentiable sum over the ranks of a run."""

from typing import Any

import torch
from torch import Tensor, distributed


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, part: Tensor) -> Tensor:
        total = part.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        distributed.all_reduce(total)
        return total


def sum_over_ranks(part: Tensor, wanted: bool = True) -> Tensor:
    """The sum of `part` over all ranks if `wanted` and there are several, else `part` itself.

    Each rank's part enters the loss of every rank, so its gradient is the sum over ranks. After DDP's averaging this is
    the gradient of the mean loss. All ranks must call this in the same order.
    """
    if not wanted or not distributed.is_available() or not distributed.is_initialized():
        return part
    total: Tensor = _Sum.apply(part)
    return total
