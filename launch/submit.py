"""Send a training, a probe or an export to SLURM: as a script, with a copy of the code, checked before it waits.

    python -m launch submit configs/pretrain/vjepa2_vitl.yaml --nodes 4 --gpus-per-node 8 --partition gpu \\
        --time 24:00:00 data.path=/shards run.output=runs/vitl
    ... --sweep optim.lr=3e-4,6e-4 --sweep run.seed=0,1           an array of four runs below run.output
    python -m launch submit configs/probe/synthetic.yaml --job probe --after 4711 encoder=runs/vitl train=... test=...
    python -m launch submit runs/vitl encoder --job export --format transformers --after 4711
    python -m launch submit runs/vitl                             once more, with what was asked for the last time

A run that is preempted, or comes near its time limit, saves and goes back to the queue by itself; scancel saves and
ends it. --dry-run prints the script and writes nothing.
"""

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

from data.loader import TrainLoader
from launch.budget import keep_steps
from launch.checkpoints import list_checkpoints
from launch.config import TrainConfig, load_config, to_yaml
from launch.export import FORMATS
from launch.probe import MEMORY, OFF, ProbeConfig, check_cache
from launch.ranks import share_out
from launch.rundir import add_event, check_same
from launch.slurm import Job, JobConfig, Kind, render_script, submit_script
from launch.snapshot import digest, take_snapshot
from launch.train import describe
from vjepa.masks import draw_masks

SUBMITTED = "submitted.yaml"
REQUEST = "request.json"
HELP = {
    "nodes": "default: 1",
    "gpus_per_node": "one task for each; 0: one task a node, without a GPU (default: 1)",
    "tasks_per_node": "default: as many as GPUs",
    "cpus_per_task": "cores for a task, for its loading processes",
    "mem": "of a node, as 64G",
    "time": "limit of the job, as 24:00:00; a run outlives it by going back to the queue",
    "notice": "seconds before the limit at which a run saves (default: 120)",
    "after": "number of a job that must have ended well",
    "name": "of the job (default: that of the folder)",
    "container": 'words before python, as "apptainer exec --nv image.sif"',
    "srun": "more words for srun, as --srun=--container-image=image.sqsh",
    "python": "interpreter (default: this one; in a container `python`)",
    "setup": 'a line to run first, as "module load cuda"; may be repeated',
    "sbatch": "another option of sbatch, as --sbatch=--mail-type=FAIL; may be repeated",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `submit`."""
    parser.add_argument("config", help="YAML file; for an export the run; or the folder of a job that was submitted")
    parser.add_argument("words", nargs="*", metavar="key=value", help="what differs; for an export the output folder")
    parser.add_argument("--job", choices=["train", "probe", "export"], help="default: train")
    parser.add_argument(
        "--sweep", action="append", default=[], metavar="key=a,b", help="a run for each; may be repeated"
    )
    parser.add_argument("--format", choices=FORMATS, default="native", help="of an export")
    parser.add_argument("--dry-run", action="store_true", help="print the script, write and submit nothing")
    group = parser.add_argument_group("what the job asks of the cluster")
    for entry in fields(JobConfig):
        option, words = "--" + entry.name.replace("_", "-"), HELP.get(entry.name)
        if entry.type is int:
            group.add_argument(option, type=int, help=words)
        elif entry.type is str:
            group.add_argument(option, help=words)
        else:
            group.add_argument(option, action="append", help=words)


def run(arguments: argparse.Namespace) -> None:
    """Check, write and submit."""
    request = read_request(arguments)
    options = JobConfig(**request["options"])
    job, files = prepare(request, options)
    if arguments.dry_run:
        print(render_script(job, options), end="")
        return
    for folder, text in files.items():
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        again = {**request, "config": str(folder / SUBMITTED), "words": [], "sweep": []} if text else request
        (folder / REQUEST).write_text(json.dumps(again, indent=1) + "\n")
        if text:
            (folder / SUBMITTED).write_text(text)
    (job.home / "logs").mkdir(parents=True, exist_ok=True)
    if len(job.folders) > 1:
        (job.home / "runs.txt").write_text("".join(f"{folder}\n" for folder in job.folders))
    job = replace(job, code=take_snapshot(job.home))
    path = job.home / "job.sh"
    path.write_text(render_script(job, options))
    number = submit_script(path)
    for place, folder in enumerate(job.folders):
        add_event(folder, "submitted", job=f"{number}_{place}" if len(job.folders) > 1 else number)
    print(farewell(number, job, options))


def read_request(arguments: argparse.Namespace) -> dict[str, Any]:
    """What is asked for, as plain data: what a folder was submitted with last time, then what the words say now."""
    given = {entry.name: getattr(arguments, entry.name) for entry in fields(JobConfig)}
    options = {name: value for name, value in given.items() if value is not None}
    stored = Path(arguments.config) / REQUEST
    request: dict[str, Any] = {
        "job": arguments.job or "train", "config": arguments.config, "words": [], "sweep": [],
        "format": arguments.format, "options": {},
    }  # fmt: skip
    if stored.is_file() and arguments.job in (None, json.loads(stored.read_text())["job"]):
        request = {**json.loads(stored.read_text()), "sweep": []}
        request["options"].pop("after", None)
    elif Path(arguments.config).is_dir() and request["job"] != "export":
        raise ValueError(f"{arguments.config} was not submitted from here: give the YAML file and its words")
    request["words"] = [*request["words"], *arguments.words]
    request["sweep"] = [*request["sweep"], *arguments.sweep]
    request["options"] = {**request["options"], **options}
    return request


def prepare(request: dict[str, Any], options: JobConfig) -> tuple[Job, dict[Path, str]]:
    """The job, and the resolved config for each of its folders; raises ValueError for what would fail in the queue."""
    kind: Kind = request["job"]
    if kind == "export":
        if len(request["words"]) != 1:
            raise ValueError("an export needs the run and one output folder: submit RUN OUTPUT --job export")
        checkpoint, output = Path(request["config"]).absolute(), Path(request["words"][0]).absolute()
        if not options.after:
            _need(str(checkpoint), "the run to export")
        home = output.with_name(output.name + ".job")
        command = ("export", str(checkpoint), str(output), "--format", request["format"])
        return Job(kind, command, (home,), home, home / "code" / digest()), {home: ""}
    files: dict[Path, str] = {}
    variants = list(expand(request["sweep"]))
    for words in variants:
        checked = check_training if kind == "train" else check_probe
        files.update([checked(request, words, options)])
    folders = tuple(files)
    if len(folders) < len(variants):
        raise ValueError("--sweep gives the same run twice")
    home = folders[0].parent if len(folders) > 1 else folders[0]
    return Job(kind, (kind, f'"$run/{SUBMITTED}"'), folders, home, home / "code" / digest()), files


def expand(sweep: list[str]) -> Iterator[list[str]]:
    """`key=a,b` words -> every combination, as key=value words."""
    choices = []
    for word in sweep:
        key, _, values = word.partition("=")
        if not key or not values:
            raise ValueError(f"--sweep {word!r} must have the form key=a,b, for instance optim.lr=3e-4,6e-4")
        choices.append([f"{key}={value}" for value in re.split(r",(?![^\[{]*[\]}])", values)])
    for combination in itertools.product(*choices):
        yield list(combination)


def name_of(words: list[str]) -> str:
    """Folder of one run of a sweep, below that of all of them."""
    return "_".join(words).replace("/", "-")


def check_training(request: dict[str, Any], sweep: list[str], options: JobConfig) -> tuple[Path, str]:
    """Folder and resolved config of a training; raises ValueError or FileNotFoundError for what would fail later."""
    config = load_config(TrainConfig, request["config"], [*request["words"], *sweep])
    run = config.run
    for name, wanted, there in (("devices", run.devices, options.tasks), ("nodes", run.nodes, options.nodes)):
        if wanted and wanted != there:
            raise ValueError(f"run.{name}={wanted}, but the job asks for {there}; leave run.{name} out")
    folder = Path(run.output).absolute() / name_of(sweep)
    health = config.health
    mix = [replace(part, path=_absolute(part.path)) for part in config.data.mix]
    config = replace(
        config,
        data=replace(config.data, path=_absolute(config.data.path), mix=mix, cache=_absolute(config.data.cache)),
        health=replace(health, probe_train=_absolute(health.probe_train), probe_test=_absolute(health.probe_test)),
        teacher=replace(config.teacher, weights=_absolute(config.teacher.weights)),
        run=replace(run, output=str(folder), start=_absolute(run.start), devices=0, nodes=0),
    )
    if not options.after:
        _need(config.run.start, "run.start")
        _need(config.teacher.weights, "teacher.weights")
    _need(config.health.probe_train, "health.probe_train")
    _need(config.health.probe_test, "health.probe_test")
    world = options.nodes * options.tasks
    config = keep_steps(config, world)
    share = share_out(config.run, world)
    TrainLoader(config.data, share.clips, run.seed, rank=0, world=world)
    for mask in config.masks.values():
        draw_masks(mask, config.encoder.grid, torch.arange(1), run.seed)
    step = next(iter(list_checkpoints(folder)), 0)
    if step:
        check_same(folder, config)
    print(describe(config, world, share, step), file=sys.stderr)
    return folder, to_yaml(config)


def check_probe(request: dict[str, Any], sweep: list[str], options: JobConfig) -> tuple[Path, str]:
    """Folder and resolved config of a probe; raises ValueError or FileNotFoundError for what would fail later."""
    config = load_config(ProbeConfig, request["config"], [*request["words"], *sweep])
    check_cache(config, options.nodes * options.tasks)
    for name in ("encoder", "train", "test"):
        if not getattr(config, name):
            raise ValueError(f"{name} is required: give {name}=... on the command line or in the file")
    folder = Path(config.output).absolute() / name_of(sweep)
    config = replace(
        config,
        encoder=_absolute(config.encoder),
        train=_absolute(config.train),
        test=_absolute(config.test),
        targets=_absolute(config.targets),
        cache=config.cache if config.cache in (MEMORY, OFF) else _absolute(config.cache),
        output=str(folder),
    )
    for name in ("train", "test", "targets", *(() if options.after else ("encoder",))):
        _need(getattr(config, name), name)
    return folder, to_yaml(config)


def farewell(number: str, job: Job, options: JobConfig) -> str:
    """What the user may do next."""
    first, many = job.folders[0], len(job.folders) > 1
    shown = f"{len(job.folders)} jobs" if many else "job"
    runs = f"{job.home}/*/" if many else str(first)
    return "\n".join(
        [
            f"submitted {shown} {number}: {options.nodes} x {options.tasks} tasks, script {job.home / 'job.sh'}",
            *([f"  python -m launch status {runs}"] if job.kind == "train" else []),
            f"  tail -F {first}/logs/rank-0.log",
            f"  scancel {number}" + ("    saves, and does not come back" if job.kind == "train" else ""),
        ]
    )


def _absolute(path: str) -> str:
    """The job runs in another folder; addresses, commands and names stay as they are."""
    return str(Path(path).absolute()) if _is_local(path) else path


def _need(path: str, name: str) -> None:
    if _is_local(path) and not Path(path).exists():
        raise FileNotFoundError(f"{name}: there is no {path}")


def _is_local(path: str) -> bool:
    return bool(path) and "://" not in path and not path.startswith(("pipe:", "timm:", "~"))
