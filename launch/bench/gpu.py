"""What to know of a new kind of GPU before a long run, in ten minutes: one JSON, a table, and what follows from it.

Attention by kernel at the true shapes; steps with and without compilation, checkpointing and early copies, beside the
estimate of their memory; operations that make the host wait; copies and writes of a checkpoint; the loss curve in bf16
against fp32 on the CPU. Runs on a CPU too, where only the small parts make sense.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from launch.bench.gpu_parts import compare_curves, find_waits, time_attention, time_state, time_steps
from launch.bench.step import OurStep, StepBench
from launch.config import load_config
from launch.devices import find_device
from launch.memory import estimate
from launch.meter import matrix_rate, release
from launch.training.config import TrainConfig
from launch.training.ranks import share_of_device
from vjepa.attention import KERNELS, pin_attention
from vjepa.masks import draw_all

CURVE_CONFIG = "vjepa1_vitti_cpu"
STATE_BYTES = 2**30  # of the tensors that are copied and written
CHECKPOINTED = ("encoder.checkpoint_activations=true",)


@dataclass(frozen=True)
class Case:
    """A step to measure."""

    name: str
    config: str
    overrides: tuple[str, ...]
    copies: str = "ahead"  # blocking: the step waits until its clips are on the device


def usual_cases() -> list[Case]:
    """The steps that decide how to train: ViT-L and ViT-g of V-JEPA 2."""

    def large(name: str, clips: int, *words: str, copies: str = "ahead") -> Case:
        return Case(name, "vjepa2_vitl", (f"run.batch_per_device={clips}", *words), copies)

    plain, eager, compiled = ("encoder.checkpoint_activations=false",), "run.compile=false", "run.compile=true"
    products = (*CHECKPOINTED, "encoder.checkpoint_keeps=products")
    giant = ("run.batch_per_device=24", *CHECKPOINTED, compiled)
    return [
        large("ViT-L 24, checkpointed", 24, *CHECKPOINTED, eager),
        large("ViT-L 24, blocking copy", 24, *plain, eager, copies="blocking"),
        large("ViT-L 24", 24, *plain, eager),
        large("ViT-L 24, compiled", 24, *plain, compiled),
        large("ViT-L 24, compiled, products kept", 24, *products, compiled),
        large("ViT-L 48, compiled", 48, *plain, compiled),
        large("ViT-L 6, compiled", 6, *plain, compiled),
        large("ViT-L 24, compiled, 6 predictor heads", 24, *plain, compiled, "predictor.heads=6"),
        Case("ViT-g 24, compiled, checkpointed", "vjepa2_vitg", giant),
        Case("ViT-g 24, compiled, products kept", "vjepa2_vitg", (*giant, "encoder.checkpoint_keeps=products")),
        Case(
            "ViT-g 64f@384 6", "vjepa2_vitg_cooldown",
            ("run.batch_per_device=6", "data.crop=384", *CHECKPOINTED, compiled, "run.start_weights=null"),
        ),
    ]  # fmt: skip


def own_cases(config: str, overrides: Sequence[str]) -> list[Case]:
    """The same questions for one config; compiled on a GPU only."""
    words = tuple(overrides)
    eager = (*words, "run.compile=false")
    cases = [
        Case("eager, blocking copy", config, eager, "blocking"),
        Case("eager", config, eager),
        Case("eager, checkpointed", config, (*eager, *CHECKPOINTED)),
        Case("eager, products kept", config, (*eager, *CHECKPOINTED, "encoder.checkpoint_keeps=products")),
    ]
    return [*cases, *([Case("compiled", config, (*words, "run.compile=true"))] if torch.cuda.is_available() else [])]


def bench_gpu(
    cases: Sequence[Case], repeats: int, curve: str = CURVE_CONFIG, words: Sequence[str] = (), state: int | None = None
) -> dict[str, Any]:
    """All measurements; a case that fails says why in its row."""
    device = find_device()
    first = load_config(TrainConfig, cases[0].config, list(cases[0].overrides))
    half = torch.bfloat16 if StepBench(first, 1).half else torch.float32
    rate = matrix_rate(half, device)
    shapes = attention_shapes(first) + (attention_shapes(_load(cases[-1])) if len(cases) > 8 else [])
    steps = [measure_case(case, repeats, rate) for case in cases]
    found = {
        "matrix_tflop_per_s": round(rate / 1e12, 2),
        "attention": [time_attention(shape, half, device, repeats) for shape in dict.fromkeys(shapes)],
        "steps": steps,
        "waits": find_waits(first),
        "state": time_state(state or STATE_BYTES, device),
        "curve": compare_curves(load_config(TrainConfig, curve, list(words))),
    }
    return {**found, "decisions": decide(found)}


def attention_shapes(config: TrainConfig) -> list[tuple[int, int, int, int]]:
    """[B, heads, tokens, head width] of every attention in a step: targets, contexts, predictions."""
    clips, jepa = share_of_device(config.run).clips, config.jepa
    encoder, predictor = jepa.encoder, jepa.predictor
    wide = encoder.shape.width // encoder.shape.heads
    shapes = [(clips, encoder.shape.heads, math.prod(encoder.grid), wide)]
    if jepa.objective_class.draws_masks:
        heads = predictor.heads or encoder.shape.heads
        for masks in draw_all(jepa.masks, encoder.grid, torch.arange(clips), jepa.seed):
            context, target = masks.context.shape[1], masks.target.shape[1]
            shapes.append((clips, encoder.shape.heads, context, wide))
            shapes.append((clips, heads, context + target, predictor.width // heads))
    return shapes


def measure_case(case: Case, repeats: int, rate: float) -> dict[str, Any]:
    """Clips per second, utilisation and peak memory of a step, and the estimate of its memory."""
    config = _load(case)
    clips = share_of_device(config.run).clips
    expected = estimate(config, clips)
    row: dict[str, Any] = {
        "name": case.name, "clips": clips,
        "estimated_gib": None if expected is None else round(expected.total - expected.reserve, 2),
    }  # fmt: skip
    if config.run.compile:
        torch.compiler.reset()
    try:
        with pin_attention(config.run.attention):
            bench = StepBench(config, clips)
            row["peak_gib"] = bench.peak(OurStep)
            seconds = time_steps(bench, OurStep(config, bench.device), case.copies, repeats)
    except (RuntimeError, MemoryError) as error:
        return {**row, "error": f"{type(error).__name__}: {error}".splitlines()[0][:120]}
    finally:
        release()
    flops = config.jepa.clip_flops(clips)
    return {
        **row,
        "step_ms": round(1000 * seconds, 2),
        "clips_per_s": round(clips / seconds, 2),
        "utilisation": round(clips * flops / seconds / rate, 3),
    }


def decide(found: dict[str, Any]) -> list[str]:
    """What the numbers suggest, most important first."""
    says: list[str] = []
    rows = {row["name"]: row for row in found["steps"] if "error" not in row}
    if found["waits"]:
        says.append(f"the host waits for the GPU at {', '.join(found['waits'][:5])}: remove this first")
    says += _decide_attention(found["attention"])
    for plain, other, name, least in (
        ("ViT-L 24", "ViT-L 24, compiled", "compilation", 1.15),
        ("eager", "compiled", "compilation", 1.15),
        ("ViT-L 24, compiled", "ViT-L 24, compiled, 6 predictor heads", "predictor.heads=6", 1.03),
        ("ViT-L 24, blocking copy", "ViT-L 24", "copying ahead", 1.0),
    ):
        if plain in rows and other in rows:
            gain = rows[other]["clips_per_s"] / rows[plain]["clips_per_s"]
            verdict = "as hoped" if gain >= least else f"less than the {least}x hoped for"
            says.append(
                f"{name}: {gain:.2f}x, {verdict}"
                + ("; look for graph breaks" if "compil" in name and gain < least else "")
            )
    crowded = rows.get("ViT-L 48, compiled")
    if crowded and crowded["peak_gib"] and crowded["peak_gib"] > 75:
        says.append(f"ViT-L with 48 clips peaks at {crowded['peak_gib']:.1f} GiB: take 40 on a card of 80 GB")
    off = [
        row for row in rows.values()
        if (row["estimated_gib"] or 0) > 1 and (row["peak_gib"] or 0) > 1.1 * row["estimated_gib"]
    ]  # fmt: skip
    if off:
        worst = max(off, key=lambda row: row["peak_gib"] / row["estimated_gib"])
        says.append(
            f"the estimate of memory is too low by more than 10 % in {len(off)} cases, most for {worst['name']} "
            f"({worst['estimated_gib']} against {worst['peak_gib']} GiB measured): raise RESERVE in launch/memory.py"
        )
    if found["curve"]["largest_relative_difference"] > 0.05:
        says.append("the loss curve departs by more than 5 % from fp32 on the CPU: find out why before a long run")
    return says


def _decide_attention(rows: Sequence[dict[str, Any]]) -> list[str]:
    best: dict[str, int] = {}
    for row in rows:
        speeds = {name: row[name] for name in KERNELS if row[name]}
        if speeds:
            winner = max(speeds, key=lambda name: speeds[name])
            best[winner] = best.get(winner, 0) + 1
    if not best:
        return []
    winner = max(best, key=lambda name: best[name])
    return [f"attention: {winner} is fastest for {best[winner]} of {len(rows)} shapes: run.attention={winner}"]


def render(
    found: dict[str, Any], columns: Sequence[str] = ("clips", "clips_per_s", "step_ms", "utilisation")
) -> list[tuple[str, ...]]:
    """The table of steps, as rows of text."""
    heads = (*columns, "peak_gib", "estimated_gib")
    rows = [("step", *heads, "")]
    for row in found["steps"]:
        rows.append(
            (row["name"], *("-" if row.get(name) is None else str(row[name]) for name in heads), row.get("error", ""))
        )
    return rows


def _load(case: Case) -> TrainConfig:
    return load_config(TrainConfig, case.config, list(case.overrides))
