"""How the ranks of a run work together: Lightning's strategy, and the check that their buffers are the same."""

import hashlib
from datetime import timedelta

import torch.distributed
from pytorch_lightning.strategies import DDPStrategy, Strategy
from torch import Tensor, nn

from launch.training.config import TrainConfig


def choose_strategy(config: TrainConfig, world: int) -> Strategy | str:
    """DDP for several ranks; it looks for parameters without a gradient only if there may be any.

    Buffers are not sent before every forward pass: each rank computes the same ones (`check_same_buffers`). Gradients
    are views of the buckets in which they are averaged, which saves a copy of all gradients.
    """
    if world == 1:
        return "auto"
    apart = config.data.images is not None and config.data.images.ranks is not None
    return DDPStrategy(
        find_unused_parameters=apart or config.jepa.leaves_unused,
        broadcast_buffers=False,
        gradient_as_bucket_view=True,
        bucket_cap_mb=config.run.bucket_mb,
        timeout=timedelta(seconds=config.run.timeout),
    )


def check_same_buffers(module: nn.Module) -> None:
    """Raise RuntimeError unless every rank has the same buffers; called on all ranks.

    They are tables that follow from the config, and counters that follow from the averaged gradients.
    """
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return
    mine = digest_buffers(module)
    found: list[str] = [""] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, mine)
    others = [rank for rank, digest in enumerate(found) if digest != found[0]]
    if others:
        names = ", ".join(name for name, _ in module.named_buffers())
        raise RuntimeError(
            f"the buffers of ranks {others[:8]} differ from those of rank 0; they must be computed from the config, or "
            f"from values that are equal on all ranks, because they are not sent around. Buffers of the model: {names}"
        )


def digest_buffers(module: nn.Module) -> str:
    """A checksum of the values of all buffers."""
    found = hashlib.sha256()
    for name, buffer in sorted(module.named_buffers()):
        found.update(name.encode() + _bytes(buffer))
    return found.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().flatten()
    return bytes(flat.view(torch.uint8).numpy())
