"""Submit work to SLURM: job scripts and a code snapshot, checked before queueing.

    vjepa submit configs/pretrain/vjepa2_vitl.yaml --nodes 4 --gpus-per-node 8 --partition gpu \\
        --time 24:00:00 data.path=/shards run.output=runs/vitl
    ... --sweep optim.lr=3e-4,6e-4 --sweep run.seed=0,1           a job array of four runs in folders of run.output
    vjepa submit configs/probe/synthetic.yaml --job probe --after 4711 encoder=runs/vitl train=... test=...
    vjepa submit runs/vitl encoder --job export --format transformers --after 4711
    vjepa submit videos/ /shards --job pack --parts 16 --partition cpu short_side=256 fast_decode=true
    vjepa submit videos/ features/ --job features --nodes 2 --gpus-per-node 8 encoder=runs/vitl pool=mean
    vjepa submit runs/vitl --job surprise pairs=twins/;   submit CONFIG --job plan model=...
    vjepa submit configs/objectives/cpu.yaml --job compare-objectives train=... test=... output=...
    vjepa submit runs/vitl                             resubmit with the options of the last submission

A run that is preempted or near its time limit saves and requeues itself; scancel makes it save and end. --dry-run
prints the scripts and writes nothing. `pack` with --parts and `compare-objectives` are chains of jobs: an array, and
what has to be done before and after it.
"""

import argparse
import json
from dataclasses import fields, replace
from typing import Any

from launch.cluster.jobs import JOBS, SUBMITTED, Step
from launch.cluster.slurm import JobConfig, render_script, submit_script
from launch.cluster.snapshot import take_snapshot
from launch.cluster.submit import CHECKS, HELP, REQUEST, describe_submission, prepare, read_request
from launch.exchange.formats import FORMATS
from launch.training.rundir import add_event


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `submit`."""
    parser.add_argument(
        "config", help="YAML file; for export and surprise the run, for pack and features the videos; or the folder of "
        "an earlier submission"
    )  # fmt: skip
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value",
        help="overrides, or settings of the command; for export, pack and features also the output folder",
    )  # fmt: skip
    parser.add_argument("--job", choices=[*CHECKS, *JOBS], help="default: train")
    parser.add_argument("--parts", type=int, metavar="N", help="pack in N parts, an array of jobs, merged afterwards")
    parser.add_argument(
        "--sweep", action="append", default=[], metavar="key=a,b", help="one run for each value; may be repeated"
    )
    parser.add_argument("--format", choices=list(FORMATS), default="native", help="format of an export")
    parser.add_argument("--dry-run", action="store_true", help="print the script, write and submit nothing")
    group = parser.add_argument_group("resources and options of the job")
    for entry in fields(JobConfig):
        option, help_text = "--" + entry.name.replace("_", "-"), HELP.get(entry.name)
        if entry.type in (int, int | None):
            group.add_argument(option, type=int, help=help_text)
        elif entry.type is str:
            group.add_argument(option, help=help_text)
        else:
            group.add_argument(option, action="append", help=help_text)


def run(arguments: argparse.Namespace) -> None:
    """Check the request, write the script and configs, and submit."""
    request = read_request(arguments)
    options = JobConfig(**request["options"])
    steps = prepare(request, options)
    if arguments.dry_run:
        print("\n".join(render_script(step.job, step.options) for step in steps), end="")
        return
    number = ""
    for step in steps:
        number = _submit(step, request, after=number)


def _submit(step: Step, request: dict[str, Any], after: str) -> str:
    """Write one job's files and submit it, to start once the job `after` has succeeded; returns its number."""
    job, files = step.job, step.files
    options = replace(step.options, after=after) if after else step.options
    for folder, text in files.items():
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        again = {**request, "config": str(folder / SUBMITTED), "words": [], "sweep": []} if text else request
        (folder / REQUEST).write_text(json.dumps(again, indent=1) + "\n")
        if text:
            (folder / SUBMITTED).write_text(text)
    (job.home / "logs").mkdir(parents=True, exist_ok=True)
    if len(job.folders) > 1:
        (job.home / "runs.txt").write_text("".join(f"{folder}\n" for folder in job.folders))
    job = replace(job, code=take_snapshot(job.code.parents[1]))
    path = job.home / "job.sh"
    path.write_text(render_script(job, options))
    number = submit_script(path)
    for index, folder in enumerate(job.folders):
        add_event(folder, "submitted", job=f"{number}_{index}" if len(job.folders) > 1 else number)
    print(describe_submission(number, job, options))
    return number
