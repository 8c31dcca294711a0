"""The time of a training step, where it goes, and the utilisation of the device's matmul rate.

The step is timed as it runs in training; its parts are timed in separate steps that synchronise with the device at
every part boundary. The matrix product, the plain step and our step alternate. B clips.
"""

import itertools
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from data.loading.loader import TrainLoader
from launch.bench.loader import drain_prefetched
from launch.devices import find_device, is_compiled
from launch.meter import Border, PartClock, matrix_product, peak_gib, release, time_in_turn
from launch.training.config import TrainConfig
from launch.training.ranks import share_of_device
from vjepa.jepa import JEPA
from vjepa.masks import draw_all
from vjepa.precision import choose_precision

WARM_UP = 3  # steps before anything is timed
PROFILED = 3  # steps in a trace
TRACE, OPERATORS = "trace.json.gz", "operators.txt"  # in the folder of --profile
REST = "masks_and_loss"  # everything outside the other parts: drawing masks, loss, the rest of the forward pass
PARTS = (
    "teacher_forward", "context_forward", "predictor", REST, "backward", "optimiser", "teacher_update", "data_wait",
)  # fmt: skip


@dataclass
class Clips:
    """A batch for the training step."""

    clips: Tensor  # uint8 [B, T, H, W, C]
    position: int


class Step(Protocol):
    """A training step split into the pieces that Lightning calls in order."""

    keeps_casts: bool  # autocast caches the cast weights until the end of the step

    def forward(self, batch: Clips) -> Tensor: ...

    def clear(self) -> None: ...

    def optimise(self) -> None: ...

    def follow(self) -> None: ...

    def borders(self) -> list[Border]: ...


class OurStep:
    """The step of a run without a trainer, with the schedules fixed at their first values."""

    keeps_casts = False  # as Lightning trains

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        self.model = JEPA(config.jepa).to(device)
        if is_compiled(config.run.compile):
            self.model.compile_blocks()
        self.optimizer = self.model.configure_optimizers()

    def forward(self, batch: Clips) -> Tensor:
        """Loss of a batch."""
        return self.model.training_step(batch, 0)

    def clear(self) -> None:
        """Zero the gradients."""
        self.optimizer.zero_grad()

    def optimise(self) -> None:
        """Compute gradient norms, then take an optimiser step."""
        self.model.on_before_optimizer_step(self.optimizer)
        self.optimizer.step()

    def follow(self) -> None:
        """The EMA update of the teacher."""
        self.model.target_encoder.update(self.model.context_encoder, self.model.momentum_at(0))

    def borders(self) -> list[Border]:
        """The methods that delimit the parts of the forward pass."""
        model = self.model
        found: list[Border] = [
            (model.target_encoder, "forward", "teacher_forward"),
            (model.context_encoder, "layers", "context_forward"),
        ]
        if model.predictor is not None:
            found.append((model.predictor, "_transform", "predictor"))
            last = (model.predictor.predictor_norm, model.predictor.predictor_proj)
            found += [(layer, "forward", "predictor") for layer in last]
        return found


def bench_step(
    config: TrainConfig,
    repeats: int,
    plain: Callable[[TrainConfig, torch.device], Step] | None = None,
    traces: Path | None = None,
) -> dict[str, Any]:
    """All measurements of a step with the batch of one device; `plain` builds a second step to compare with."""
    bench = StepBench(config, share_of_device(config.run).clips)
    builders = {"ours": OurStep} if plain is None else {"plain": plain, "ours": OurStep}
    peaks = {name: bench.peak(build) for name, build in reversed(builders.items())}
    steps = {name: build(config, bench.device) for name, build in builders.items()}
    found: dict[str, dict[str, Any]] = {
        name: {**timed, "peak_gib": peaks[name]} for name, timed in bench.time(steps, repeats).items()
    }
    for name, parts in bench.parts(steps, repeats).items():
        found[name]["parts_ms"] = parts
    row = {**describe(config, bench.size), **found["ours"], "masks_ms": bench.masks(repeats), **bench.graphs()}
    if plain is not None:
        names = ("step_ms", "clips_per_s", "utilisation", "parts_ms", "peak_gib")
        row["plain"] = {name: found["plain"][name] for name in names}
        row["speedup"] = round(found["plain"]["step_ms"] / found["ours"]["step_ms"], 3)
    if traces is not None:
        row["profile"] = bench.profile(steps["ours"], traces)
    return row


def describe(config: TrainConfig, size: int) -> dict[str, Any]:
    """The configuration that is measured."""
    return {
        "encoder": config.encoder.size,
        "tokens": config.encoder.grid,
        "batch": size,
        "precision": choose_precision(config.run.precision, find_device()),
        "compile": is_compiled(config.run.compile),
        "checkpoint_activations": config.encoder.checkpoint_activations,
    }


class StepBench:
    """Measures steps of one config with batches of `size` clips."""

    def __init__(self, config: TrainConfig, size: int, device: torch.device | None = None) -> None:
        self.config, self.size = config, size
        self.device = device or find_device()
        self.half = choose_precision(config.run.precision, self.device) == "bf16"
        self.compiled, self.warm = _count_graphs(), 0

    def take(self, step: Step, batch: Clips, clock: PartClock) -> Tensor:
        """Run one step in the order that Lightning does; returns the loss."""
        with torch.autocast(self.device.type, torch.bfloat16, self.half, step.keeps_casts), _without_trainer():
            loss = step.forward(batch)
        with clock.part("optimiser"):
            step.clear()
        with clock.part("backward"):
            loss.backward()
        with clock.part("optimiser"), _without_trainer():
            step.optimise()
        with clock.part("teacher_update"):
            step.follow()
        return loss.detach()

    def made_clips(self) -> Iterator[Clips]:
        """Batches at no cost: always the same pixels, but the masks of consecutive steps."""
        data = self.config.data
        shape = (self.size, data.frames, data.crop, data.crop, 3)
        clips = torch.randint(0, 256, shape, dtype=torch.uint8, device=self.device)
        return (Clips(clips, self.size * number) for number in itertools.count(1))

    def read_clips(self, batches: Iterator[Any]) -> Iterator[Clips]:
        """Batches from the loader, on the device."""
        for batch in batches:
            yield Clips(batch.clips.to(self.device, non_blocking=True), batch.position)

    def peak(self, build: Callable[[TrainConfig, torch.device], Step]) -> float | None:
        """Peak memory in GiB of a step on its own: weights, optimiser state, activations."""

        def work() -> None:
            step, batches, off = build(self.config, self.device), self.made_clips(), PartClock(self.device, on=False)
            for _ in range(2):  # only the second step starts with optimiser state
                self.take(step, next(batches), off)

        found = peak_gib(work, self.device)
        release()
        return None if found is None else round(found, 3)

    def time(self, steps: dict[str, Step], repeats: int) -> dict[str, dict[str, float]]:
        """Step time, rates and utilisation of each step; the steps and the matrix product alternate."""
        product, operations = matrix_product(torch.bfloat16 if self.half else torch.float32, self.device)
        off = PartClock(self.device, on=False)

        def repeat(step: Step) -> Callable[[], object]:
            batches = self.made_clips()
            return lambda: self.take(step, next(batches), off)

        works: list[Callable[[], object]] = [repeat(step) for step in steps.values()]
        for work in works * WARM_UP:
            work()
        self.warm = _count_graphs()
        product_seconds, *seconds = time_in_turn([product, *works], repeats, 1, self.device)
        rate, flops = operations / product_seconds, self.size * self.config.jepa.clip_flops(self.size)
        return {
            name: {
                "step_ms": round(1000 * took, 2),
                "clips_per_s": round(self.size / took, 2),
                "gflop_per_clip": round(flops / self.size / 1e9, 3),
                "gflop_per_s": round(flops / took / 1e9, 1),
                "matrix_gflop_per_s": round(rate / 1e9, 1),
                "utilisation": round(flops / took / rate, 3),
            }
            for name, took in zip(steps, seconds, strict=True)
        }

    def parts(self, steps: dict[str, Step], repeats: int) -> dict[str, dict[str, float | None]]:
        """Milliseconds of each part: the median, except the mean for the sporadic data wait. The steps alternate.

        With data.path, batches come from the loader, after draining its prefetched ones; without it there is no data
        wait. On a GPU the data wait is an upper bound: in training, clips are fetched while the device still works.
        """
        with ExitStack() as stack:
            batches = self.made_clips()
            if self.config.data.path:
                loader = TrainLoader(self.config.data, self.size, self.config.run.seed)
                read = stack.enter_context(closing(iter(loader)))
                drain_prefetched(read, self.config.data.count_workers())
                batches = self.read_clips(read)
            rows: dict[str, list[dict[str, float]]] = {name: [] for name in steps}
            for number, (name, step) in itertools.product(range(repeats + 1), steps.items()):
                row = self.time_parts(step, batches, PartClock(self.device))
                if number:  # the first one warms up
                    rows[name].append(row)
        return {name: self.summarise(found) for name, found in rows.items()}

    def summarise(self, rows: list[dict[str, float]]) -> dict[str, float | None]:
        """Milliseconds of each part from the seconds of several steps."""
        found: dict[str, float | None] = {
            name: round(1000 * median(row.get(name, 0.0) for row in rows), 2) for name in PARTS
        }
        waits = mean(row["data_wait"] for row in rows)
        found["data_wait"] = round(1000 * waits, 2) if self.config.data.path else None
        return found

    def time_parts(self, step: Step, batches: Iterator[Clips], clock: PartClock) -> dict[str, float]:
        """Seconds of the parts of a step; they add up to its total time."""
        with clock.watch(step.borders()), clock.part(REST):
            with clock.part("data_wait"):
                batch = next(batches)
            self.take(step, batch, clock)
        return clock.seconds

    def masks(self, repeats: int) -> float | None:
        """Milliseconds to draw all masks for a batch; None if the objective uses no masks."""
        config = self.config.jepa
        if not config.objective_class.draws_masks:
            return None
        positions = torch.arange(self.size, device=self.device)

        def draw() -> None:
            draw_all(config.masks, config.encoder.grid, positions, config.seed)

        return round(1000 * time_in_turn([draw], repeats, WARM_UP, self.device)[0], 3)

    def graphs(self) -> dict[str, Any]:
        """Number of graphs compiled by torch.compile, and how many of them after the warm-up."""
        if not is_compiled(self.config.run.compile):
            return {"recompilations": None}
        now = _count_graphs()
        return {"recompilations": {"graphs": now - self.compiled, "after_warm_up": now - self.warm}}

    def profile(self, step: Step, folder: Path) -> dict[str, str]:
        """Write a trace of a few steps and a table of the most expensive operators; returns both paths."""
        folder.mkdir(parents=True, exist_ok=True)
        batches, off, on_gpu = self.made_clips(), PartClock(self.device, on=False), self.device.type == "cuda"
        kinds = [ProfilerActivity.CPU, ProfilerActivity.CUDA] if on_gpu else [ProfilerActivity.CPU]
        self.take(step, next(batches), off)
        with profile(activities=kinds) as trace:
            for _ in range(PROFILED):
                self.take(step, next(batches), off)
        trace.export_chrome_trace(str(folder / TRACE))
        order = "self_cuda_time_total" if on_gpu else "self_cpu_time_total"
        (folder / OPERATORS).write_text(trace.key_averages().table(sort_by=order, row_limit=40) + "\n")
        return {"trace": str(folder / TRACE), "operators": str(folder / OPERATORS)}


def _count_graphs() -> int:
    """Number of graphs that this process has compiled."""
    from torch._dynamo.utils import counters  # local import: slow, and only needed when compiling

    stats: Counter[str] = counters["stats"]
    return stats["unique_graphs"]


@contextmanager
def _without_trainer() -> Iterator[None]:
    """Suppress Lightning's warning that there is no trainer to log to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*self.trainer. reference is not registered.*")
        yield
