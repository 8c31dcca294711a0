"""Train objectives with equal compute on one or several data sets, probe each, and compare them over seeds."""

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from omegaconf import DictConfig, OmegaConf

from data.files import write_json
from data.loading.loader import EvalLoader
from launch.config import load_config, read_files
from launch.probing.probe import ProbeConfig, probe
from launch.studies.data_sets import DataSet
from launch.studies.objective_table import DIVERGED, Row, as_plain, collect, draw_figure, render
from launch.studies.over_sets import render_sets, write_sets
from launch.training.budget import measure_step, parse_duration
from launch.training.checkpoints import list_checkpoints, load_module
from launch.training.config import TrainConfig
from launch.training.rundir import check_same, settle_precision
from launch.training.trainer import train
from launch.training.watchers.skips import DivergedError
from probes.extractors import FrozenEncoder
from vjepa.gauges import collapse_gauges, uniformity
from vjepa.jepa import JEPA

GAUGED = 8  # batches of 32 clips for the gauges
ROUNDS = 2  # rounds of timing a step, each over all choices; the faster one counts


@dataclass(frozen=True)
class Choice:
    """One objective, given as overrides of the pretraining config."""

    about: str = ""  # description for the table
    settings: dict[str, Any] = field(
        default_factory=dict
    )  # part of a pretraining config; its masks replace those of the base config
    teacher: dict[str, Any] = field(default_factory=dict)  # settings of a teacher that is trained first, then frozen
    teacher_share: float = 0.4  # fraction of the budget for that teacher, if there is one
    budget_share: float = 1.0  # of the study's budget, for a curve over budgets

    def __post_init__(self) -> None:
        if not 0 < self.teacher_share < 1:
            raise ValueError(f"choices: teacher_share must lie in (0, 1), got {self.teacher_share}")
        if not self.budget_share > 0:
            raise ValueError(f"choices: budget_share must be positive, got {self.budget_share}")


@dataclass(frozen=True)
class Transfer:
    """Another pair of labelled sets on which every encoder is probed."""

    train: str = ""
    test: str = ""


@dataclass(frozen=True)
class StudyConfig:
    """The objectives to compare, the data, and the compute."""

    pretrain: str = "configs/bench/motions_cpu.yaml"  # base config of pretraining for every choice
    probe: str = "configs/probe/synthetic.yaml"  # probe config
    train: str = ""  # folder of shards for pretraining and for training the probes; required without sets
    test: str = ""  # folder of shards of the test set; required without sets
    sets: dict[str, DataSet] = field(default_factory=dict)  # several data sets instead of train and test
    choices: dict[str, Choice] = field(default_factory=dict)
    transfer: dict[str, Transfer] = field(default_factory=dict)
    only: list[str] = field(default_factory=list)  # names of the choices to run; empty: all
    budget: str = "10min"  # compute per run
    steps: int | None = None  # optimiser steps per run, instead of the budget
    seeds: int = 3  # runs per choice
    output: str = "runs/objectives"

    def __post_init__(self) -> None:
        parse_duration(self.budget, "budget")
        if self.seeds < 1 or (self.steps is not None and self.steps < 1):
            raise ValueError(f"seeds and steps must be at least 1, got {self.seeds} and {self.steps}")
        unknown = [name for name in self.only if name not in self.choices]
        if unknown:
            raise ValueError(f"only names {', '.join(unknown)}; the choices are {', '.join(self.choices)}")

    @property
    def compute(self) -> str:
        """What each run gets, in words."""
        return self.budget if self.steps is None else f"{self.steps} steps"

    def chosen(self) -> dict[str, Choice]:
        """The choices to run."""
        return {name: choice for name, choice in self.choices.items() if not self.only or name in self.only}


def compare(config: StudyConfig) -> str:
    """Compare on one data set, or on each of several; returns the tables, which are also written to the output."""
    if not config.sets:
        return render(compare_on_one(config), config.compute)
    folder, ones = Path(config.output), split_sets(config)
    for seeds in range(1, config.seeds + 1):  # every set with one seed, then every set with another; both are kept
        tables = {name: compare_on_one(replace(one, seeds=seeds)) for name, one in ones.items()}
        write_sets(folder, tables)
    return render_sets(tables)


def split_sets(config: StudyConfig) -> dict[str, StudyConfig]:
    """A comparison for each data set, in a folder of its own; generated data that is missing is written."""
    if not config.sets:
        return {"": config}
    ones = {}
    for name, found in config.sets.items():
        folder = Path(config.output) / name
        train_set, test_set = found.shards(folder / "data")
        ones[name] = replace(config, sets={}, output=str(folder), train=train_set, test=test_set)
    return ones


def compare_on_one(config: StudyConfig) -> list[Row]:
    """Time the steps, train, probe, and write table and figure."""
    folder = Path(config.output)
    steps = choose_steps(config, folder)
    for seed in range(config.seeds):
        for name, choice in config.chosen().items():
            run_folder = folder / name / f"seed-{seed}"
            if pretrain(config, choice, run_folder, seed, steps[name]):
                measure(config, run_folder, seed, baselines=name == first_finished(config, folder, seed))
    rows = collect(folder, {name: choice.about for name, choice in config.choices.items()}, steps)
    (folder / "results.json").write_text(
        json.dumps({"budget": config.compute, "rows": as_plain(rows)}, indent=1) + "\n"
    )
    (folder / "table.md").write_text(render(rows, config.compute))
    draw_figure(rows, folder / "figure.png")
    return rows


def first_finished(config: StudyConfig, folder: Path, seed: int) -> str:
    """The choice whose probe also measures the baselines of a seed: the first that did not diverge."""
    finished = (name for name in config.choices if not (folder / name / f"seed-{seed}" / DIVERGED).is_file())
    return next(finished, "")


def pretrain(config: StudyConfig, choice: Choice, folder: Path, seed: int, steps: Mapping[str, int]) -> bool:
    """Train one choice with one seed, after its frozen teacher if it has one. An interrupted run is resumed.

    False if it diverged: that is a result too, recorded in diverged.txt, and not retried.
    Raises ValueError if the folder holds a run with other settings.
    """
    parts = {"run": dict(choice.settings)}
    if choice.teacher:
        weights = {"teacher": {**choice.settings.get("teacher", {}), "weights": str(folder / "teacher")}}
        parts = {"teacher": choice.teacher, "run": {**choice.settings, **weights}}
    note, runs = folder / DIVERGED, []
    for part, settings in parts.items():
        resolved = resolve(config, settings, folder)
        runs.append(
            replace(
                resolved,
                run=replace(resolved.run, output=str(folder / part), seed=seed, steps=steps[part], total_clips=None),
            )
        )
        try:
            check_same(folder / part, settle_precision(runs[-1]))
        except ValueError as error:
            raise ValueError(f"{error}; for a comparison, delete {folder} or choose another output") from error
    if note.is_file():
        print(f"{folder} diverged before and is not retried: {note.read_text().strip()}")
        return False
    try:
        for run_config in runs:
            if run_config.run.total_steps not in list_checkpoints(Path(run_config.run.output)):
                train(run_config)
    except DivergedError as error:
        note.write_text(f"{error}\n")
        print(f"{folder} diverged: {error}")
        return False
    return True


def resolve(config: StudyConfig, settings: Mapping[str, Any], folder: Path) -> TrainConfig:
    """The base config with a choice's settings, also written to pretrain.yaml; ValueError for an unknown key."""
    base = cast("DictConfig", OmegaConf.merge(*(values for _, values in read_files(config.pretrain))))
    if "masks" in settings:
        base.pop("masks", None)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "pretrain.yaml"
    OmegaConf.save(OmegaConf.merge(base, dict(settings), {"data": {"path": config.train}}), path)
    return load_config(TrainConfig, path, [])


def choose_steps(config: StudyConfig, folder: Path) -> dict[str, dict[str, int]]:
    """Number of steps within the budget for each choice's run and teacher; measured once, stored in steps.json."""
    folder.mkdir(parents=True, exist_ok=True)
    if config.steps is not None:
        total = dict.fromkeys(("run", "teacher"), 1.0)
        return {name: split_budget(choice, config.steps, total) for name, choice in config.choices.items()}
    path, budget = folder / "steps.json", parse_duration(config.budget, "budget")
    known: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"budget": config.budget, "seconds": {}}
    if known["budget"] != config.budget:
        raise ValueError(f"{folder} holds a comparison with budget={known['budget']}; choose another output")
    missing = {name: choice for name, choice in config.choices.items() if name not in known["seconds"]}
    if missing:
        known["seconds"] |= measure_steps(config, missing, folder / "measured")
        write_json(path, known)
    return {name: split_budget(choice, budget, known["seconds"][name]) for name, choice in config.choices.items()}


def split_budget(choice: Choice, budget: float, cost: Mapping[str, float]) -> dict[str, int]:
    """Steps of a choice's run, and of its teacher if one is trained first; cost: of one step of each."""
    budget *= choice.budget_share
    share = choice.teacher_share if choice.teacher else 0.0
    steps = {"run": max(1, int((1 - share) * budget / cost["run"]))}
    if share:
        steps["teacher"] = max(1, int(share * budget / cost["teacher"]))
    return steps


def measure_steps(config: StudyConfig, choices: Mapping[str, Choice], folder: Path) -> dict[str, dict[str, float]]:
    """Seconds per step of each choice and its teacher, the faster of two rounds over all of them."""
    parts = {
        (name, part): resolve(
            config, settings, folder / f"{name}-{part}"
        )  # resolve all before timing, so that a typo fails at once
        for name, choice in choices.items()
        for part, settings in measured_parts(choice).items()
    }
    found: dict[str, dict[str, float]] = {name: {} for name in choices}
    for _ in range(ROUNDS):
        for (name, part), trial in parts.items():
            seconds = measure_step(train, trial, compute=True)
            found[name][part] = min(seconds, found[name].get(part, seconds))
            print(f"{name}: a step of its {part} takes {1000 * seconds:.0f} ms", flush=True)
    return found


def measured_parts(choice: Choice) -> dict[str, dict[str, Any]]:
    """The settings to time for a choice: its run, and its teacher if one is trained first.

    A frozen teacher costs the same as a moving average except for the update, so it is timed as one.
    """
    settings = dict(choice.settings)
    if not choice.teacher:
        return {"run": settings}
    return {"run": {**settings, "teacher": {"source": "average"}}, "teacher": choice.teacher}


def measure(config: StudyConfig, folder: Path, seed: int, baselines: bool) -> None:
    """Probe one run on every data set, and read its gauges; existing results are kept."""
    if not (folder / "gauges.json").is_file():
        gauges = read_gauges(load_module(folder / "run"), config)
        write_json(folder / "gauges.json", gauges)
    for name, sets in {"": Transfer(config.train, config.test), **config.transfer}.items():
        output = folder / (f"probe-{name}" if name else "probe")
        if not (output / "results.json").is_file():
            overrides = [
                f"encoder={folder / 'run'}",
                f"train={sets.train}",
                f"test={sets.test}",
                f"output={output}",
                f"heads.seed={seed}",
                *([] if baselines else ["baselines=[]"]),
            ]
            probe(load_config(ProbeConfig, config.probe, overrides))


def read_gauges(model: JEPA, config: StudyConfig) -> dict[str, float]:
    """The collapse gauges of the trained encoder on the first clips of the test set, the same for every choice."""
    encoder = model.trained_encoder
    data = load_config(ProbeConfig, config.probe, []).data
    data = replace(data, path=config.test, frames=encoder.config.frames, crop=encoder.config.crop)
    frozen, features = FrozenEncoder(encoder), []
    for batch in itertools.islice(EvalLoader(data, batch=32), GAUGED):
        features.append(frozen(batch.clips[:, 0]).float())
    tokens = torch.cat(features)
    found = collapse_gauges(tokens)
    return {"rank": found["rank"], "spread": found["spread"], "uniformity": uniformity(tokens.mean(1))}
