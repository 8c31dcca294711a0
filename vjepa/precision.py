"""bf16 where the device supports it natively, fp32 elsewhere.

A CPU without AVX-512-BF16 or AMX emulates bf16: a matrix product took 44 times as long as in fp32 (measured, AVX2).
"""

from typing import Literal

import torch

Precision = Literal["auto", "bf16", "fp32"]


def choose_precision(wanted: Precision, device: torch.device | str) -> Literal["bf16", "fp32"]:
    """`wanted`; `auto` means bf16 if `device` supports it natively, else fp32."""
    if wanted != "auto":
        return wanted
    if torch.device(device).type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    checks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return "bf16" if any(check() for check in checks if check is not None) else "fp32"
