"""The measurements of `bench gpu`, one function each; see `gpu.py`."""

import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import sdpa_kernel

from data.files import sync
from launch.bench.step import WARM_UP, Clips, OurStep, Step, StepBench
from launch.devices import find_device
from launch.meter import PartClock, release, time_in_turn, wait_for
from launch.training.config import TrainConfig
from launch.training.feed import Copier, look_ahead
from launch.training.ranks import share_of_device
from vjepa.attention import KERNELS

CURVE_STEPS, CURVE_CLIPS = 20, 4
TRAINED = 3  # operations of forward and backward pass over those of the forward pass


def time_attention(
    shape: tuple[int, int, int, int], half: torch.dtype, device: torch.device, repeats: int
) -> dict[str, Any]:
    """TFLOP/s of attention, forward and backward, by kernel; None where a kernel does not take this shape."""
    batch, heads, tokens, wide = shape
    flops = TRAINED * 4 * batch * heads * tokens**2 * wide
    query, key, value = (torch.randn(shape, device=device, dtype=half, requires_grad=True) for _ in range(3))
    row: dict[str, Any] = {"shape": list(shape)}
    for name, kernel in KERNELS.items():

        def work(kernel: Any = kernel) -> None:
            with sdpa_kernel(kernel):
                functional.scaled_dot_product_attention(query, key, value).sum().backward()

        try:
            row[name] = float(f"{flops / time_in_turn([work], repeats, WARM_UP, device)[0] / 1e12:.4g}")
        except RuntimeError:  # not supported, or out of memory
            row[name] = None
        release()
    return row


def time_steps(bench: StepBench, step: Step, copies: str, repeats: int) -> float:
    """Seconds per step over `repeats` steps in a row, clips copied from the host as in training."""
    off, batches = PartClock(bench.device, on=False), host_batches(bench)
    if bench.device.type != "cuda" or copies == "blocking":
        moved: Iterator[Clips] = (Clips(batch.clips.to(bench.device), batch.position) for batch in batches)
    else:
        copier = Copier(bench.device)
        moved = look_ahead(batches, copier.begin, Copier.finish)  # type: ignore[arg-type]
    for _ in range(WARM_UP):
        bench.take(step, next(moved), off)
    wait_for(bench.device)
    begun = time.perf_counter()
    for _ in range(repeats):
        bench.take(step, next(moved), off)
    wait_for(bench.device)
    return (time.perf_counter() - begun) / repeats


class HostClips(Clips):
    """Clips in the host's memory, pinned for a GPU."""

    def to(self, device: torch.device, non_blocking: bool = False) -> "HostClips":
        """The same clips on a device."""
        return HostClips(self.clips.to(device, non_blocking=non_blocking), self.position)

    def record_stream(self, stream: Any) -> "HostClips":
        """See `Batch.record_stream`."""
        self.clips.record_stream(stream)
        return self


def host_batches(bench: StepBench) -> Iterator[HostClips]:
    """The same random pixels again and again, with the masks of consecutive steps."""
    data = bench.config.data
    clips = torch.randint(0, 256, (bench.size, data.frames, data.crop, data.crop, 3), dtype=torch.uint8)
    clips = clips.pin_memory() if bench.device.type == "cuda" else clips
    return (HostClips(clips, bench.size * number) for number in count(1))


def find_waits(config: TrainConfig) -> list[str] | None:
    """Places of a step at which the host waits for the GPU; None on a CPU."""
    if not torch.cuda.is_available():
        return None
    bench = StepBench(replace(config, run=replace(config.run, compile=False)), share_of_device(config.run).clips)
    step, off, batches = OurStep(bench.config, bench.device), PartClock(bench.device, on=False), bench.made_clips()
    bench.take(step, next(batches), off)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            bench.take(step, next(batches), off)
    finally:
        torch.cuda.set_sync_debug_mode("default")
        release()
    return sorted({f"{Path(one.filename).name}:{one.lineno}" for one in heard if "synchron" in str(one.message)})


def time_state(size: int, device: torch.device) -> dict[str, float | None]:
    """GB/s of copying state to the host and of writing it with torch.save, synced to disk."""
    tensors = [torch.zeros(2**20, device=device) for _ in range(max(1, size // 2**22))]
    total = sum(tensor.nbytes for tensor in tensors) / 1e9
    hosts = [torch.empty_like(tensor, device="cpu", pin_memory=device.type == "cuda") for tensor in tensors]

    def copy() -> None:
        for host, tensor in zip(hosts, tensors, strict=True):
            host.copy_(tensor, non_blocking=True)

    copied = time_in_turn([copy], 3, 1, device)[0]
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        torch.save(hosts, Path(folder) / "state")
        sync(Path(folder) / "state")
        written = time.perf_counter() - begun
    return {
        "gb": round(total, 3),
        "copy_gb_per_s": round(total / copied, 2),
        "save_gb_per_s": round(total / written, 2),
    }


def compare_curves(config: TrainConfig, steps: int = CURVE_STEPS) -> dict[str, Any]:
    """The losses of the first steps as this device trains, and in fp32 on the CPU, from the same seed and pixels."""
    words = replace(config, run=replace(config.run, compile=False, precision="auto"))
    here = losses(words, find_device(), steps)
    plain = losses(replace(words, run=replace(words.run, precision="fp32")), torch.device("cpu"), steps)
    apart = max(abs(mine - theirs) / abs(theirs) for mine, theirs in zip(here, plain, strict=True))
    return {"here": here, "fp32_cpu": plain, "largest_relative_difference": round(apart, 5)}


def losses(config: TrainConfig, device: torch.device, steps: int) -> list[float]:
    """Loss of each step on random clips."""
    bench = StepBench(config, CURVE_CLIPS, device)
    step, off, found = OurStep(config, device), PartClock(device, on=False), []
    generator = torch.Generator().manual_seed(0)
    shape = (CURVE_CLIPS, config.data.frames, config.data.crop, config.data.crop, 3)
    for number in islice(count(1), steps):
        clips = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(device)
        loss: Tensor = bench.take(step, Clips(clips, CURVE_CLIPS * number), off)
        found.append(round(float(loss), 5))
    release()
    return found
