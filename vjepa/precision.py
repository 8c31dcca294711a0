"""bf16 where the device computes in it, fp32 elsewhere.

A CPU without AVX-512-BF16 or AMX emulates bf16: a matrix product took 44 times as long as in fp32 (AVX2, measured).
"""

from typing import Literal

import torch

Precision = Literal["auto", "bf16", "fp32"]


def choose_precision(wanted: Precision, device: torch.device | str) -> Literal["bf16", "fp32"]:
    """`wanted`, or for `auto` bf16 where `device` computes in it natively."""
    if wanted != "auto":
        return wanted
    if torch.device(device).type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    checks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return "bf16" if any(check() for check in checks if check is not None) else "fp32"
