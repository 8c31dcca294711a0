"""Prepares a SLURM submission, checking everything that would otherwise fail only after queueing."""

import argparse
import itertools
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from data.loading.loader import TrainLoader
from launch.cluster.jobs import JOBS, SUBMITTED, Step, count_cores_wanted, with_cores
from launch.cluster.paths import absolute, absolute_plugins, need
from launch.cluster.slurm import Job, JobConfig
from launch.cluster.snapshot import digest
from launch.config import load_config, to_yaml
from launch.memory import CARDS, check_card, describe_memory, estimate
from launch.probing.probe import MEMORY, OFF, ProbeConfig, check_cache
from launch.training.budget import keep_steps
from launch.training.checkpoints import list_checkpoints
from launch.training.config import TrainConfig
from launch.training.ranks import share_out
from launch.training.rundir import check_same
from launch.training.trainer import describe
from vjepa.masks import draw_all

REQUEST = "request.json"
HELP = {
    "nodes": "default: 1",
    "gpus_per_node": "one task per GPU; 0: one task per node, without a GPU (default: 1)",
    "tasks_per_node": "default: as many as GPUs",
    "cpus_per_task": "cores per task (default: what its loader needs; 0: the cluster's default)",
    "mem": "memory per node, such as 64G",
    "time": "time limit of the job, such as 24:00:00; a longer run requeues itself",
    "notice": "seconds before the limit at which a run saves (default: 120)",
    "card": f"refuse a run that by the estimate does not fit the memory of this card: {', '.join(CARDS)}",
    "after": "ID of a job that must finish successfully first",
    "name": "name of the job (default: name of the folder)",
    "container": 'command prefix, such as "apptainer exec --nv image.sif"',
    "srun": "extra options for srun, such as --srun=--container-image=image.sqsh",
    "python": "interpreter (default: this one; in a container `python`)",
    "setup": 'a line to run first, such as "module load cuda"; may be repeated',
    "sbatch": "extra option for sbatch, such as --sbatch=--mail-type=FAIL; may be repeated",
}


def read_request(arguments: argparse.Namespace) -> dict[str, Any]:
    """The request as plain data: that of the folder's last submission, if any, updated with these arguments."""
    given = {entry.name: getattr(arguments, entry.name) for entry in fields(JobConfig)}
    options = {name: value for name, value in given.items() if value is not None}
    stored = Path(arguments.config) / REQUEST
    request: dict[str, Any] = {
        "job": arguments.job or "train", "config": arguments.config, "words": [], "sweep": [],
        "format": arguments.format, "parts": None, "options": {},
    }  # fmt: skip
    if stored.is_file() and arguments.job in (None, json.loads(stored.read_text())["job"]):
        request = {**json.loads(stored.read_text()), "sweep": []}
        request["options"].pop("after", None)
    elif Path(arguments.config).is_dir() and request["job"] in CHECKS:
        raise ValueError(f"{arguments.config} holds no earlier submission: give the YAML file and its overrides")
    request["words"] = [*request["words"], *arguments.overrides]
    request["sweep"] = [*request["sweep"], *arguments.sweep]
    request["parts"] = arguments.parts or request.get("parts")
    request["options"] = {**request["options"], **options}
    return request


def prepare(request: dict[str, Any], options: JobConfig) -> list[Step]:
    """The jobs, each to start after the one before; raises ValueError for what would fail in them."""
    kind = request["job"]
    if request.get("parts") and kind != "pack":
        raise ValueError(f"--parts belongs to --job pack, not to {kind}; leave it out")
    if kind not in CHECKS:
        if request["sweep"]:
            raise ValueError(f"--sweep goes with {' and '.join(CHECKS)}, not with --job {kind}; leave it out")
        return JOBS.find(kind)(request, options)
    files: dict[Path, str] = {}
    variants = list(expand(request["sweep"]))
    for overrides in variants:
        folder, text, cores = CHECKS[kind](request, overrides, options)
        files[folder] = text
        options = with_cores(options, cores)
    folders = tuple(files)
    if len(folders) < len(variants):
        raise ValueError("--sweep gives the same run twice")
    home = folders[0].parent if len(folders) > 1 else folders[0]
    job = Job(kind, (kind, f'"$run/{SUBMITTED}"'), folders, home, home / "code" / digest())
    return [Step(job, files, options)]


def expand(sweep: list[str]) -> Iterator[list[str]]:
    """`key=a,b` options -> every combination, as key=value overrides."""
    choices = []
    for option in sweep:
        key, _, values = option.partition("=")
        if not key or not values:
            raise ValueError(f"--sweep {option!r} must have the form key=a,b, for instance optim.lr=3e-4,6e-4")
        choices.append([f"{key}={value}" for value in re.split(r",(?![^\[{]*[\]}])", values)])
    for combination in itertools.product(*choices):
        yield list(combination)


def name_of(overrides: list[str]) -> str:
    """Name of the subfolder of one run of a sweep."""
    return "_".join(overrides).replace("/", "-")


def check_training(request: dict[str, Any], sweep: list[str], options: JobConfig) -> tuple[Path, str, int]:
    """Folder, resolved config and cores per task of a run; raises ValueError or OSError for what would fail."""
    config = load_config(TrainConfig, request["config"], [*request["words"], *sweep])
    run = config.run
    for name, wanted, there in (("devices", run.devices, options.tasks), ("nodes", run.nodes, options.nodes)):
        if wanted and wanted != there:
            raise ValueError(f"run.{name}={wanted}, but the job requests {there}; leave run.{name} out")
    folder = Path(run.output).absolute() / name_of(sweep)
    health = config.health
    mix = [replace(part, path=absolute(part.path)) for part in config.data.mix]
    config = replace(
        config,
        data=replace(config.data, path=absolute(config.data.path), mix=mix, cache=absolute(config.data.cache)),
        health=replace(health, probe_train=absolute(health.probe_train), probe_test=absolute(health.probe_test)),
        teacher=replace(config.teacher, weights=absolute(config.teacher.weights)),
        run=replace(
            run,
            output=str(folder),
            start=absolute(run.start),
            plugins=absolute_plugins(run.plugins),
            devices=None,
            nodes=None,
        ),
    )
    if not options.after:
        need(config.run.start, "run.start")
        need(config.teacher.weights, "teacher.weights")
    need(config.health.probe_train, "health.probe_train")
    need(config.health.probe_test, "health.probe_test")
    world = options.nodes * options.tasks
    config = keep_steps(config, world)
    share = share_out(config.run, world)
    loader = TrainLoader(config.data, share.clips, run.seed, rank=0, world=world, step=run.batch)
    if config.jepa.objective_class.draws_masks:
        draw_all(config.jepa.masks, config.encoder.grid, torch.arange(1), run.seed)
    step = next(iter(list_checkpoints(folder)), 0)
    if step:
        check_same(folder, config)
    print(describe(config, world, share, step), file=sys.stderr)
    print(describe_memory(config, share.clips, world), file=sys.stderr)
    needed = estimate(config, share.clips, world) if options.card else None
    if needed is not None:
        check_card(needed, options.card)
    fast = all(manifest.made.get("options", {}).get("fast_decode") for manifest in loader.manifests)
    return folder, to_yaml(config), count_cores_wanted(config.data.workers, fast, options.gpus_per_node)


def check_probe(request: dict[str, Any], sweep: list[str], options: JobConfig) -> tuple[Path, str, int]:
    """Folder, resolved config and cores per task of a probe; raises ValueError or OSError for what would fail."""
    config = load_config(ProbeConfig, request["config"], [*request["words"], *sweep])
    check_cache(config, options.nodes * options.tasks)
    for name in ("encoder", "train", "test"):
        if not getattr(config, name):
            raise ValueError(f"{name} is required: give {name}=... on the command line or in the file")
    folder = Path(config.output).absolute() / name_of(sweep)
    config = replace(
        config,
        encoder=absolute(config.encoder),
        train=absolute(config.train),
        test=absolute(config.test),
        targets=absolute(config.targets),
        cache=config.cache if config.cache in (MEMORY, OFF) else absolute(config.cache),
        plugins=absolute_plugins(config.plugins),
        output=str(folder),
    )
    for name in ("train", "test", "targets", *(() if options.after else ("encoder",))):
        need(getattr(config, name), name)
    return folder, to_yaml(config), count_cores_wanted(config.data.workers, False, options.gpus_per_node)


CHECKS = {"train": check_training, "probe": check_probe}  # jobs with one config per run, which may be swept


def describe_submission(number: str, job: Job, options: JobConfig) -> str:
    """A summary of the submission and the commands to follow it."""
    first, many = job.folders[0], len(job.folders) > 1
    shown = f"{len(job.folders)} jobs" if many else "job"
    runs = f"{job.home}/*/" if many else str(first)
    return "\n".join(
        [
            f"submitted {shown} {number}: {options.nodes} x {options.tasks} tasks, script {job.home / 'job.sh'}",
            *([f"  vjepa status {runs}"] if job.kind == "train" else []),
            f"  tail -F {first}/logs/rank-0.log",
            f"  scancel {number}" + ("    saves and ends the run" if job.kind == "train" else ""),
        ]
    )
