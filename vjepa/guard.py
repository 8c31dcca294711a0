"""Skip updates with non-finite or exploding gradients. The decision stays on the device: no host synchronisation.

The fused optimiser skips its step if its `found_inf` is 1. After averaging, gradients are equal on all ranks, so all
ranks decide the same.
"""

import torch
from torch import Tensor, nn

SETTLING = 100  # updates before a gradient can count as a spike
MEMORY = 0.99  # of the running average


class Guard(nn.Module):
    """Monitors the gradient norm of a run; its state is saved in checkpoints."""

    average: Tensor
    accepted: Tensor
    skipped: Tensor
    skipped_in_a_row: Tensor

    def __init__(self, spike: float) -> None:
        super().__init__()
        self.spike = spike  # multiple of the running average of the norm; 0: skip only non-finite gradients
        self.register_buffer("average", torch.zeros(()))  # of the norms, each capped at the limit when it occurred
        for name in ("accepted", "skipped", "skipped_in_a_row"):
            self.register_buffer(name, torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def check(self, norms: list[Tensor]) -> Tensor:
        """Gradient norms of the modules (scalars) -> 1 if the update must be skipped, else 0 (float32 scalar).

        A norm above the limit enters the average as the limit, so a lasting increase soon stops counting as a spike.
        Otherwise a run could stall for good: while updates are skipped, the weights and so the gradient stay the same.
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
