"""`vjepa plan`: a world model in closed loop, with floor, ceiling, gauges and a report."""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from data.files import claim_folder, write_json
from launch.exchange.world import load_world
from launch.planning.config import PlanConfig
from launch.planning.environments import open_environment
from launch.planning.episodes import Recorder, run_row
from launch.planning.gauges import fit_measure, load_clips, score_rollouts, walk_through_walls
from launch.planning.policies import (
    Array,
    Measure,
    ModelPolicy,
    Policy,
    RandomPolicy,
    SimulatorPolicy,
    StraightPolicy,
    count_stride,
    encode,
    imagine,
)
from launch.planning.report import write_page
from probes.extractors import hash_weights
from probes.tables import align_columns
from vjepa.encoder import build_encoder
from vjepa.world.model import Transition, WorldModel

RESULTS, REPORT = "results.json", "report.html"
HORIZON = 16  # steps of the model in the gauges of rollouts
NEED_SIMULATOR = ("straight", "simulator")
LABELS = {
    "model": "planner on the world model",
    "random": "random actions",
    "straight": "straight towards the goal",
    "untrained": "planner on an untrained model",
    "simulator": "planner on the true simulator",
    "model_position": "world model, goal in the probe's position",
}
MATTERS_NOT = ("output", "episodes", "compare", "pictures", "test", "plugins")  # to the outcome of an episode


def run_plan(config: PlanConfig, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Run all rows, write results.json and report.html, and return the results. Stored episodes are not repeated.

    Raises ValueError for a model, an environment or data that do not fit each other.
    """
    if not config.model or not config.data:
        raise ValueError(f"model and data are required, got model={config.model!r} and data={config.data!r}")
    begun, folder = time.perf_counter(), Path(config.output)
    environment = open_environment(config.env, config.settings)
    example = environment.make()
    space = example.action_space
    world = load_world(config.model)
    _check_size(world, example.reset(seed=0)[0], config)
    stride = count_stride(world, space.shape[0], config)
    with claim_folder(folder, "plan", "choose another output"):
        shape = world.encoder.config
        clips = load_clips(config.data, shape.frames, stride, shape.crop, config.clips)
        measure = fit_measure(world, *clips, stride)
        say(f"probe of position: R2 {measure.r2:.3f}; typical action {measure.unit:.3f} in the latent")
        blank = make_untrained(world)
        blank_measure = fit_measure(blank, *clips, stride)
        makers: dict[str, Callable[[int], Policy]] = {
            "model": lambda first: ModelPolicy(config, environment.limit, space.shape[0], world, measure),
            "random": lambda first: RandomPolicy(config, space, first),
            "straight": lambda first: StraightPolicy(config, environment),
            "untrained": lambda first: ModelPolicy(
                _without_guardrails(config),
                environment.limit,
                space.shape[0],
                blank,
                blank_measure,
            ),
            "simulator": lambda first: SimulatorPolicy(config, environment, space.shape[0], stride, measure),
            "model_position": lambda first: ModelPolicy(
                _in_position(config), environment.limit, space.shape[0], world, measure
            ),
        }
        recorder = None if (folder / REPORT).is_file() else Recorder(_expect(measure, stride))
        rows = {}
        for name in (
            "model",
            *(name for name in config.compare if environment.simulates or name not in NEED_SIMULATOR),
        ):
            mark = fingerprint(config, world, name)
            found = run_row(name, config, environment, makers[name], mark, say, recorder if name == "model" else None)
            rows[name] = found.summarise(config.steps)
        results = {
            "format": "vjepa-plan-1",
            "rows": rows,
            "gauges": measure_world(config, world, measure, environment, stride),
            "config": asdict(config),
            "seconds": round(time.perf_counter() - begun, 1),
            "torch": torch.__version__,
        }
        write_json(folder / RESULTS, results)
        if recorder is not None:
            write_page(folder / REPORT, results, table_rows(results), recorder.tracks, config)
    return results


def measure_world(
    config: PlanConfig, world: WorldModel, measure: Measure, environment: Any, stride: int
) -> dict[str, Any]:
    """The gauges of the world model."""
    found: dict[str, Any] = {"probe_r2": measure.r2}
    if config.test:
        clips = load_clips(config.test, HORIZON + 1, stride, world.encoder.config.crop, 200)
        found |= score_rollouts(world, measure, *clips)
    if hasattr(environment, "push_at_walls"):
        found["through_walls"] = walk_through_walls(world, measure, environment, stride, config.seed)
    return found


def make_untrained(world: WorldModel) -> WorldModel:
    """The same architecture with new weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        shape = world.encoder.config
        return WorldModel(build_encoder(shape), Transition(world.options, shape)).eval()


def fingerprint(config: PlanConfig, world: WorldModel, name: str) -> str:
    """Identifies what the outcome of a row's episodes depends on."""
    facts = {key: value for key, value in asdict(config).items() if key not in MATTERS_NOT}
    text = json.dumps([facts, name, hash_weights(world)], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def table_rows(results: dict[str, Any]) -> list[list[str]]:
    """The rows of the table, header first."""
    guarded = "success_and_safe" in results["rows"]["model"]
    columns = {"last": "success at the end, %", "any": "at any time, %"}
    if guarded:
        columns |= {"violated": "entered the disc, %", "success_and_safe": "success and safe, %"}
    lines = [["actions chosen by", *columns.values(), "episodes", "ms per action"]]
    for name, row in results["rows"].items():
        shares = [show_share(row[column]) if column in row else "-" for column in columns]
        lines.append([LABELS[name], *shares, str(row["episodes"]), f"{row['ms_per_action']:.1f}"])
    return lines


def show_share(share: dict[str, float]) -> str:
    """A share with its interval in per cent."""
    return f"{100 * share['share']:.1f} ({100 * share['low']:.1f}-{100 * share['high']:.1f})"


def describe(results: dict[str, Any]) -> str:
    """The table and the gauges as text."""
    gauges = results["gauges"]
    lines = [align_columns(table_rows(results)), "", f"probe of position: R2 {gauges['probe_r2']:.3f}"]
    if "within_clip" in gauges:
        lines.append(f"within-clip share of the variance: {gauges['within_clip']:.3f}")
        header = ["steps imagined", "error / standing still", "median error of position", "standing still"]
        table = [
            [ahead, f"{row['relative']:.3f}", f"{row['position']:.2f}", f"{row['still']:.2f}"]
            for ahead, row in gauges["rollout"].items()
        ]
        lines += ["", align_columns([header, *table])]
    if "through_walls" in gauges:
        walls = ", ".join(f"{100 * share:.0f} % after {steps}" for steps, share in gauges["through_walls"].items())
        lines += ["", f"imagined dots beyond a wall they are pushed at, by steps of the model: {walls}"]
    return "\n".join(lines)


def _expect(measure: Measure, stride: int) -> Callable[[Policy, Array], Array | None]:
    """What the present plan of a policy expects, as positions."""

    @torch.no_grad()
    def expect(policy: Policy, frames: Array) -> Array | None:
        if not isinstance(policy, ModelPolicy) or policy.before is None or measure.probe is None:
            return None
        actions = policy.before.actions.unflatten(1, (-1, stride)).flatten(2).unsqueeze(1)
        future = imagine(policy.world, encode(policy.world, frames), actions)
        path: Array = measure.probe(torch.cat([future.start[:, None], future.summaries[:, 0]], 1)).numpy()
        return path

    return expect


def _in_position(config: PlanConfig) -> PlanConfig:
    return replace(config, energy=replace(config.energy, space="position"))


def _without_guardrails(config: PlanConfig) -> PlanConfig:
    return replace(config, energy=replace(config.energy, forbidden=0.0, surprise=0.0, action=0.0, space="latent"))


def _check_size(world: WorldModel, frame: Array, config: PlanConfig) -> None:
    crop = world.encoder.config.crop
    if frame.shape[:2] != (crop, crop):
        raise ValueError(
            f"env={config.env} shows frames of {frame.shape[0]} x {frame.shape[1]} pixels, the model was trained on "
            f"{crop} x {crop}; set the size in settings, or wrap the environment"
        )
