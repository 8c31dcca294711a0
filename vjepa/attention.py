"""Softmax attention, and the choice of the kernel that computes it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

AttentionKernel = Literal["auto", "flash", "cudnn", "efficient", "math"]
KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}

_pinned: list[str] = []  # the kernels chosen by the open `pin_attention` blocks


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax attention over [B, heads, K, R].

    On a CPU in bf16 the fused kernel is 1.5 to 6 times slower than explicit matrix products (256 to 72 tokens), which
    are used unless a kernel is pinned.
    """
    if query.device.type == "cpu" and query.dtype == torch.bfloat16 and not _pinned:
        weights: Tensor = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
        return torch.matmul(weights.softmax(-1), value)
    return functional.scaled_dot_product_attention(query, key, value)


@contextmanager
def pin_attention(name: AttentionKernel) -> Iterator[None]:
    """Let this kernel compute attention inside the block, in all threads; auto: torch chooses.

    Inputs that the kernel does not support, such as fp32 for flash, go to the next kernel that does.
    """
    if name == "auto":
        yield
        return
    order = [KERNELS[name], *(KERNELS[other] for other in ("efficient", "math") if name not in (other, "math"))]
    _pinned.append(name)
    try:
        with sdpa_kernel(order, set_priority=True):
            yield
    finally:
        _pinned.pop()
