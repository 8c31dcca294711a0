"""The kinds of jobs besides training: each turns a request into jobs that run one after the other.

A request has a source (the first argument of `submit`) and words: an output folder or key=value settings, as the
command itself takes them.
"""

import argparse
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NoReturn

from data.packing.pack import PackConfig, check_output
from data.packing.sources import list_sources
from launch.cluster.paths import absolute, absolute_plugins, is_local, need
from launch.cluster.slurm import Job, JobConfig
from launch.cluster.snapshot import digest
from launch.commands.features import add_arguments
from launch.config import load_config, to_yaml
from launch.config_files import find_config
from launch.planning.config import PlanConfig
from launch.plugins import PLUGINS
from launch.seeing.surprise import SurpriseConfig
from launch.studies.compare_objectives import StudyConfig, Transfer
from vjepa.registry import Registry

SUBMITTED = "submitted.yaml"
PACKING_CORES = 8  # per part: one process each
DECODING_CORES = 3  # of a features task: the main process, a decoder, and what moves the windows
FLAGS = ("hierarchical", "overwrite")  # options of `features` without a value


@dataclass(frozen=True)
class Step:
    """One job of a chain: the resolved config for each of its folders ("": none), and its resources."""

    job: Job
    files: dict[Path, str]
    options: JobConfig


Prepare = Callable[[dict[str, Any], JobConfig], list[Step]]
JOBS: Registry[Prepare] = Registry("--job")


def count_cores_wanted(workers: int | None, fast: bool, gpus: int) -> int:
    """Cores per task for a loader: its processes and the main one; 0, the cluster's default, if that is unknown.

    With data.workers=null a loader uses what cores it gets, at most 8: about 8 keep a GPU busy on unchanged videos, 3
    on shards that were packed for speed (docs/scale.md).
    """
    if workers is not None:
        return workers + 1
    if not gpus:
        return 0
    return 4 if fast else 9


def with_cores(options: JobConfig, cores: int) -> JobConfig:
    """The options with a default for the cores per task."""
    return options if options.cpus_per_task is not None else replace(options, cpus_per_task=cores)


@JOBS.register("pack")
def prepare_pack(request: dict[str, Any], options: JobConfig) -> list[Step]:
    """An array of parts on CPUs, and a merge after it."""
    source, output, settings = _source_and_output(request, "the videos and one output folder: submit VIDEOS OUTPUT")
    config = load_config(PackConfig, None, settings)
    if config.part:
        raise ValueError(f"part={config.part}: a job packs all parts; give their number with --parts")
    list_sources(source)
    check_output(source, output)
    parts, home = request.get("parts") or 1, _home(Path(output))
    if parts < 1:
        raise ValueError(f"--parts must be at least 1, got {parts}")
    options = with_cores(replace(options, nodes=1, gpus_per_node=0, tasks_per_node=1), PACKING_CORES)
    words = ["pack", shlex.quote(source), shlex.quote(output), *_pack_options(config)]
    if options.cpus_per_task and config.jobs < 0:
        words += ["--jobs", str(options.cpus_per_task)]
    if parts == 1:
        return [_step("pack", words, (home,), home, options)]
    words += ["--part", f'"$((SLURM_ARRAY_TASK_ID + 1))/{parts}"']
    folders = tuple(home / f"part-{number + 1:04d}" for number in range(parts))
    merge = ["pack", "--merge", shlex.quote(output)]
    return [
        _step("pack", words, folders, home, options),
        _step("pack", merge, (home / "merge",), home, replace(options, cpus_per_task=1)),
    ]


@JOBS.register("features")
def prepare_features(request: dict[str, Any], options: JobConfig) -> list[Step]:
    """Features of many videos: every task takes its share of them."""
    source, output, settings = _source_and_output(request, "the videos and one output folder: submit VIDEOS OUTPUT")
    list_sources(source)
    words = ["features", source, "--output", output]
    for setting in settings:
        name, _, value = setting.partition("=")
        flag = f"--{name.replace('_', '-')}"
        if name in ("encoder", "head"):
            if not options.after:
                need(value, name)
            value = absolute(value)
        words += [flag] if name in FLAGS and value.lower() == "true" else [flag, *value.strip("[]").split(",")]
    _check_features(words[1:])
    home = _home(Path(output))
    return [_step("features", list(map(shlex.quote, words)), (home,), home, with_cores(options, DECODING_CORES))]


@JOBS.register("surprise")
def prepare_surprise(request: dict[str, Any], options: JobConfig) -> list[Step]:
    """Possible against impossible videos, for one model."""
    model, settings = absolute(request["config"]), list(request["words"])
    config = load_config(SurpriseConfig, None, settings)
    need(config.pairs, "pairs")
    if not options.after:
        need(model, "the run")
    folder = Path(model) / "surprise" if config.output is None else Path(config.output).absolute()
    if config.output is None and not is_local(model):
        raise ValueError("give output=FOLDER: the model is not a folder")
    words = ["surprise", model, *settings, f"pairs={absolute(config.pairs)}", f"output={folder}"]
    home = _home(folder)
    return [_step("surprise", list(map(shlex.quote, words)), (home,), home, _alone(options))]


@JOBS.register("plan")
def prepare_plan(request: dict[str, Any], options: JobConfig) -> list[Step]:
    """Planning in closed loop, for one model."""
    config = load_config(PlanConfig, request["config"], request["words"])
    for name in ("data", "test", *(() if options.after else ("model",))):
        need(getattr(config, name), name)
    if not config.model or not config.data:
        raise ValueError("model and data are required: give model=... data=... on the command line or in the file")
    paths = {name: absolute(getattr(config, name)) for name in ("model", "data", "test", "output")}
    config = replace(config, plugins=absolute_plugins(config.plugins), **paths)
    folder = Path(config.output)
    return [_step("plan", ["plan", f'"$run/{SUBMITTED}"'], (folder,), folder, _alone(options), [to_yaml(config)])]


@JOBS.register("compare-objectives")
def prepare_study(request: dict[str, Any], options: JobConfig) -> list[Step]:
    """Three jobs: measure the step times, then one array task per choice, then the table."""
    config = load_config(StudyConfig, request["config"], request["words"])
    for name in () if config.sets else ("train", "test"):
        if not getattr(config, name):
            raise ValueError(f"{name} is required: a folder of labelled shards")
        need(getattr(config, name), name)
    sets = {name: replace(one, train=absolute(one.train), test=absolute(one.test)) for name, one in config.sets.items()}
    transfer = {name: Transfer(absolute(pair.train), absolute(pair.test)) for name, pair in config.transfer.items()}
    config = replace(
        config,
        pretrain=str(find_config(config.pretrain).absolute()),
        probe=str(find_config(config.probe).absolute()),
        train=absolute(config.train),
        test=absolute(config.test),
        sets=sets,
        transfer=transfer,
        output=absolute(config.output),
    )
    home, names, options = _home(Path(config.output)), list(config.chosen()), _alone(options)
    start = ["compare-objectives", f'"$run/{SUBMITTED}"']
    text = to_yaml(config)
    each = [to_yaml(replace(config, only=[name])) for name in names]
    folders = tuple(home / name for name in names)
    return [
        _step("compare-objectives", [*start, "--measure"], (home / "steps",), home, options, [text]),
        _step("compare-objectives", start, folders, home, options, each),
        _step("compare-objectives", start, (home / "table",), home, options, [text]),
    ]


@JOBS.register("export")
def prepare_export(request: dict[str, Any], options: JobConfig) -> list[Step]:
    """One encoder in another format."""
    if len(request["words"]) != 1:
        raise ValueError("an export needs the run and one output folder: submit RUN OUTPUT --job export")
    checkpoint, output = Path(request["config"]).absolute(), Path(request["words"][0]).absolute()
    if not options.after:
        need(str(checkpoint), "the run to export")
    words = ["export", *map(shlex.quote, (str(checkpoint), str(output))), "--format", request["format"]]
    home = _home(output)
    return [_step("export", words, (home,), home, options)]


def _step(
    kind: str,
    words: Sequence[str],
    folders: tuple[Path, ...],
    home: Path,
    options: JobConfig,
    texts: Sequence[str] = (),
) -> Step:
    """A job whose script and logs are in `home`, or in its only folder."""
    for name in absolute_plugins(PLUGINS.get()):
        words = [*words, "--plugin", shlex.quote(name)]
    own = folders[0] if len(folders) == 1 else home
    files = dict(zip(folders, texts or [""] * len(folders), strict=True))
    return Step(Job(kind, tuple(words), folders, own, home / "code" / digest()), files, options)


def _home(output: Path) -> Path:
    """Where the script and the logs of a job lie: beside its output, which may have to be empty."""
    return output.absolute().with_name(output.name + ".job")


def _alone(options: JobConfig) -> JobConfig:
    """One task: the work is not divided among ranks."""
    if options.nodes > 1 or options.tasks > 1:
        raise ValueError(
            f"this job runs as one task, got {options.nodes} nodes of {options.tasks}; leave --nodes and "
            "--tasks-per-node out, and give at most --gpus-per-node 1"
        )
    return options


def _source_and_output(request: dict[str, Any], what: str) -> tuple[str, str, list[str]]:
    folders = [word for word in request["words"] if "=" not in word]
    if len(folders) != 1:
        raise ValueError(f"a {request['job']} job needs {what} --job {request['job']} key=value ...")
    settings = [word for word in request["words"] if "=" in word]
    return str(Path(request["config"]).absolute()), str(Path(folders[0]).absolute()), settings


def _pack_options(config: PackConfig) -> list[str]:
    words = []
    for entry in fields(PackConfig):
        value = getattr(config, entry.name)
        if value != entry.default:
            flag = f"--{entry.name.replace('_', '-')}"
            words += [flag] if value is True else [flag, shlex.quote(str(value))]
    return words


def _check_features(words: list[str]) -> None:
    """Raise ValueError if `features` would not accept these arguments."""
    parser = _Parser()
    add_arguments(parser)
    parser.parse_intermixed_args(words)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"features: {message}")
