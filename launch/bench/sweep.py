"""The fastest options and batch size for this device: every combination with a growing batch, as a table."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch

from launch.bench.step import OurStep, StepBench
from launch.devices import find_device, is_compiled
from launch.meter import available_gib, release
from launch.training.config import TrainConfig
from probes.tables import align_columns
from vjepa.precision import Precision, choose_precision

VARIED = ("precision", "compile", "checkpoint")
MOST_ON_CPU = 64  # default limit on clips per batch on a CPU
GAIN = 1.02  # stop when two doublings in a row speed up throughput by less than this factor
OUT_OF_MEMORY = "out of memory"
HEADS = ("precision", "compile", "checkpoint", "batch", "clips/s", "ms/step", "peak GiB", "utilisation", "")


@dataclass(frozen=True)
class Point:
    """The measurement of one combination with one batch size, or the reason why it failed."""

    precision: str
    compile: bool
    checkpoint: bool
    batch: int
    step_ms: float = 0.0
    clips_per_s: float = 0.0
    utilisation: float = 0.0
    peak_gib: float | None = None
    error: str = ""


def sweep(config: TrainConfig, repeats: int, most_clips: int, vary: Sequence[str]) -> Iterator[Point]:
    """Points of all combinations of the options in `vary`, each with batches of 1, 2, 4, ... clips.

    When memory runs out, two more sizes between the last that fitted and the one that did not narrow down the largest
    batch. A combination also ends at `most_clips` (0: 64 on a CPU, no limit on a GPU), or when two doublings
    in a row each give less than 2 % more clips per second.
    """
    unknown = [name for name in vary if name not in VARIED]
    if unknown or not vary:
        raise ValueError(
            f"--vary takes a comma-separated list of {', '.join(VARIED)}, got {','.join(vary) or 'nothing'}"
        )
    limit = most_clips or (0 if torch.cuda.is_available() else MOST_ON_CPU)
    for choice in choices(config, vary):
        yield from grow(choice, repeats, limit)


def choices(config: TrainConfig, vary: Sequence[str]) -> Iterator[TrainConfig]:
    """The config with every combination of the varied options; the rest is unchanged."""
    run, encoder = config.run, config.encoder
    precisions: tuple[Precision, ...] = ("bf16", "fp32") if "precision" in vary else (run.precision,)
    compiles = (False, True) if "compile" in vary else (is_compiled(run.compile),)
    checkpoints = (False, True) if "checkpoint" in vary else (encoder.checkpoint_activations,)
    for precision, compiled, checkpointed in product(precisions, compiles, checkpoints):
        yield replace(
            config,
            run=replace(run, precision=precision, compile=compiled),
            encoder=replace(encoder, checkpoint_activations=checkpointed),
        )


def grow(config: TrainConfig, repeats: int, limit: int) -> Iterator[Point]:
    """Points of one combination, doubling the batch."""
    if is_compiled(config.run.compile):
        torch.compiler.reset()  # graphs of earlier combinations would count against the recompilation limit
    peaks: list[float] = []
    best, idle, batch = 0.0, 0, 1
    while (not limit or batch <= limit) and idle < 2 and fits(peaks):
        point = measure(config, batch, repeats)
        yield point
        if point.error:
            yield from narrow(config, batch // 2, batch, repeats, point.error == OUT_OF_MEMORY)
            return
        idle = 0 if point.clips_per_s >= GAIN * best else idle + 1
        best, batch = max(best, point.clips_per_s), 2 * batch
        if point.peak_gib is not None:
            peaks.append(point.peak_gib)


def narrow(config: TrainConfig, fitted: int, failed: int, repeats: int, memory: bool) -> Iterator[Point]:
    """Halve the gap between the largest batch that fitted and the smallest that did not, twice."""
    for _ in range(2 if memory else 0):
        middle = (fitted + failed) // 2
        if middle in (fitted, failed):
            return
        point = measure(config, middle, repeats)
        yield point
        fitted, failed = (fitted, middle) if point.error else (middle, failed)


def fits(peaks: Sequence[float]) -> bool:
    """On a CPU: will the next doubling, extrapolated from the last two peaks, use less than half the free memory?"""
    available = available_gib()
    if torch.cuda.is_available() or available is None or len(peaks) < 2:
        return True
    return peaks[-1] + 2 * (peaks[-1] - peaks[-2]) <= available / 2


def measure(config: TrainConfig, batch: int, repeats: int) -> Point:
    """Measure one point; a failure is recorded in it."""
    point = Point(
        choose_precision(config.run.precision, find_device()),
        is_compiled(config.run.compile),
        config.encoder.checkpoint_activations,
        batch,
    )
    try:
        bench = StepBench(config, batch)
        peak = bench.peak(OurStep)
        timed = bench.time({"ours": OurStep(config, bench.device)}, repeats)["ours"]
    except (RuntimeError, MemoryError) as error:  # out of memory, no compiler
        reason = OUT_OF_MEMORY if is_memory(error) else f"{type(error).__name__}: {error}".splitlines()[0][:80]
        return replace(point, error=reason)
    finally:
        release()
    return replace(
        point,
        step_ms=timed["step_ms"],
        clips_per_s=timed["clips_per_s"],
        utilisation=timed["utilisation"],
        peak_gib=peak,
    )


def render(points: Sequence[Point]) -> str:
    """An aligned table; the fastest point is marked."""
    best = fastest(points)
    rows = [HEADS, *(cells(point, point is best) for point in points)]
    return align_columns(rows, left=(len(HEADS) - 1,))


def fastest(points: Sequence[Point]) -> Point | None:
    """The point with the most clips per second; None if all failed."""
    return max((point for point in points if not point.error), key=lambda point: point.clips_per_s, default=None)


def cells(point: Point, best: bool = False) -> tuple[str, ...]:
    """One row of the table."""
    numbers: tuple[Any, ...] = ("-",) * 4
    if not point.error:
        peak = "-" if point.peak_gib is None else f"{point.peak_gib:.2f}"
        numbers = (f"{point.clips_per_s:.1f}", f"{point.step_ms:.1f}", peak, f"{point.utilisation:.2f}")
    switches = ("yes" if on else "no" for on in (point.compile, point.checkpoint))
    return (point.precision, *switches, str(point.batch), *numbers, "<- fastest" if best else point.error)


def is_memory(error: BaseException) -> bool:
    """Whether memory ran out; on a CPU only the error message tells."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)
