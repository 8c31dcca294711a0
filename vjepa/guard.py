"""Skips an update whose gradient would do harm, without a word from the host: the decision stays on the device.

The fused optimiser leaves everything as it is where its `found_inf` says 1. Gradients are the same on all ranks once
they are averaged, so all ranks decide alike.
"""

import torch
from torch import Tensor, nn

SETTLING = 100  # updates before a gradient can be called too large
MEMORY = 0.99  # of the running average


class Guard(nn.Module):
    """Watches the gradient norm of a run; its counts are part of a checkpoint."""

    average: Tensor
    accepted: Tensor
    skipped: Tensor
    skipped_in_a_row: Tensor

    def __init__(self, spike: float) -> None:
        super().__init__()
        self.spike = spike  # times the running average of the norm; 0: only what is not finite is skipped
        self.register_buffer("average", torch.zeros(()))  # of the norms, each up to the limit of its time
        for name in ("accepted", "skipped", "skipped_in_a_row"):
            self.register_buffer(name, torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def judge(self, norms: list[Tensor]) -> Tensor:
        """Gradient norms of the modules (scalars) -> 1 where the update is to be skipped, else 0 (float32 scalar).

        A norm above the limit enters the average as the limit. So a spike passes, and what lasts is soon no spike: else
        one step onto steeper ground would end a run, for as the weights stay, so does the gradient.
        """
        norm = torch.stack(norms).norm()
        finite = norm.isfinite()
        harmful, counted = ~finite, norm
        if self.spike:
            high = (self.accepted >= SETTLING) & (norm > self.spike * self.average)
            harmful, counted = harmful | high, torch.where(high, self.spike * self.average, norm)
        memory = torch.where(self.accepted == 0, 0.0, MEMORY)
        average = memory * self.average + (1 - memory) * counted
        self.average.copy_(torch.where(finite, average, self.average))
        self.accepted += ~harmful
        self.skipped += harmful
        self.skipped_in_a_row.copy_(torch.where(harmful, self.skipped_in_a_row + 1, 0))
        found: Tensor = harmful.float()
        return found
