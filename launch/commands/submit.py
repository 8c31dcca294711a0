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
import json
from dataclasses import fields, replace

from launch.cluster.slurm import JobConfig, render_script, submit_script
from launch.cluster.snapshot import take_snapshot
from launch.cluster.submit import HELP, REQUEST, SUBMITTED, farewell, prepare, read_request
from launch.exchange.formats import FORMATS
from launch.training.rundir import add_event


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `submit`."""
    parser.add_argument("config", help="YAML file; for an export the run; or the folder of a job that was submitted")
    parser.add_argument("words", nargs="*", metavar="key=value", help="what differs; for an export the output folder")
    parser.add_argument("--job", choices=["train", "probe", "export"], help="default: train")
    parser.add_argument(
        "--sweep", action="append", default=[], metavar="key=a,b", help="a run for each; may be repeated"
    )
    parser.add_argument("--format", choices=list(FORMATS), default="native", help="of an export")
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
