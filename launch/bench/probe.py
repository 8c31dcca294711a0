"""The cost of a sweep of heads on cached features, against one head that re-runs the encoder in every epoch."""

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from launch.probing.probe import OFF, ProbeConfig, check_classes, collect, plan
from launch.probing.subjects import read_subject
from launch.ranks import Rank
from probes.evaluate import HeadsConfig, evaluate
from probes.features import Features
from probes.kinds import HEADS


def bench_probe(config: ProbeConfig, repeats: int) -> dict[str, Any]:
    """Seconds of both, alternating; only the encoder's features and the attentive head of the config are used.

    The time of the sweep covers the feature pass into an empty cache, training all heads, selecting one, refitting it
    on all training samples and evaluating it. The other time covers training and evaluating a single head.
    """
    depths = [name for name in config.heads.names if HEADS.find(name).depth]
    if len(depths) != 1:
        raise ValueError(f"heads.names must have one attentive head to be timed, got {', '.join(config.heads.names)}")
    attentive = config.heads.attentive
    sweep = replace(config, baselines=(), heads=replace(config.heads, names=(depths[0],), shares=()))
    alone = replace(attentive, lrs=attentive.lrs[:1], weight_decays=attentive.weight_decays[:1], seeds=1)
    single = replace(sweep, cache=OFF, heads=replace(sweep.heads, attentive=alone))
    orders = plan(read_subject(config.encoder, config.weights, crop=config.crop), sweep, Rank())
    classes = check_classes(config, orders)

    def answer(sets: list[dict[str, Features]], heads: HeadsConfig) -> None:
        evaluate(sets[0], sets[1], classes, heads)

    def run_sweep() -> None:
        with tempfile.TemporaryDirectory() as folder:
            answer(collect(orders, replace(sweep, cache=folder), Rank()), sweep.heads)

    streamed = collect(orders, single, Rank())  # not timed: pooled means, which an attentive head does not need
    times: dict[str, list[tuple[float, float]]] = {"sweep": [], "alone": []}
    for _ in range(repeats):
        times["sweep"].append(_clock(run_sweep))
        times["alone"].append(_clock(lambda: answer(streamed, single.heads)))
    found: dict[str, Any] = {
        f"{name}_{kind}_s": round(statistics.median(pair[column] for pair in pairs), 2)
        for name, pairs in times.items()
        for column, kind in enumerate(("wall", "cpu"))
    }
    return {
        "samples": [order.loader.manifest.samples for order in orders],
        "tokens": orders[0].shape("encoder"),
        "head": depths[0],
        "heads": len(attentive.grid) * attentive.seeds,
        "epochs": attentive.epochs,
        "repeats": repeats,
        **found,
        "wall_share": round(found["sweep_wall_s"] / found["alone_wall_s"], 3),
        "cpu_share": round(found["sweep_cpu_s"] / found["alone_cpu_s"], 3),
    }


def _clock(work: Callable[[], None]) -> tuple[float, float]:
    """Wall-clock seconds and CPU seconds of this process; the latter exclude the loader workers."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu
