"""The interface to SLURM: job scripts, submission, and job state.

The script can be read, edited and resubmitted by hand. srun starts one task per GPU. A run that was asked to stop
leaves its job ID in the file `unfinished`; the script then requeues the job unless somebody cancelled it. The script
does this rather than Python, which may run in a container without SLURM.
"""

import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class JobConfig:
    """Resources and options of a job; an empty value or 0 leaves the cluster's default."""

    nodes: int = 1
    gpus_per_node: int = 1  # one task per GPU; 0: one task per node, without a GPU
    tasks_per_node: int = 0  # 0: as many as GPUs
    cpus_per_task: int | None = None  # None: what the loader needs; 0: the cluster's default
    mem: str = ""  # per node, such as 64G
    time: str = ""  # limit, such as 24:00:00
    notice: int = 120  # seconds before the limit at which a run saves and requeues
    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    card: str = ""  # kind of GPU, such as h100: refuse a run that would not fit its memory
    name: str = ""
    after: str = ""  # ID of a job that must finish successfully first
    container: str = ""  # command prefix, such as "apptainer exec --nv image.sif"
    srun: str = ""  # extra options for srun, such as "--container-image=image.sqsh"
    python: str = ""  # the interpreter; empty: this one, or `python` in a container
    setup: tuple[str, ...] = ()  # lines to run first, such as "module load cuda"
    sbatch: tuple[str, ...] = ()  # extra options for sbatch, such as "--mail-type=FAIL"

    def __post_init__(self) -> None:
        if self.nodes < 1 or self.notice < 1:
            raise ValueError(f"--nodes and --notice must be at least 1, got {self.nodes} and {self.notice}")
        for name in ("gpus_per_node", "tasks_per_node", "cpus_per_task"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"--{name.replace('_', '-')} must not be negative, got {getattr(self, name)}")

    @property
    def tasks(self) -> int:
        """Tasks per node."""
        return self.tasks_per_node or max(1, self.gpus_per_node)


@dataclass(frozen=True)
class Job:
    """One job, or a job array with one folder per task."""

    kind: str
    command: tuple[str, ...]  # arguments of `python -m launch`; "$run" stands for the folder
    folders: tuple[Path, ...]
    home: Path  # folder of the job script and log
    code: Path  # the code snapshot


def render_script(job: Job, config: JobConfig) -> str:
    """The sbatch script."""
    array = len(job.folders) > 1
    home = shlex.quote(str(job.home))
    if array:
        folder = f'run=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" {home}/runs.txt)'
    else:
        folder = f"run={shlex.quote(str(job.folders[0]))}"
    python = shlex.quote(config.python) if config.python else _interpreter(config)
    start = " ".join(part for part in (config.container, python, "-m launch", *job.command) if part)
    srun = " ".join(part for part in ("srun --kill-on-bad-exit=1", _cpus(config), config.srun) if part)
    return "\n".join(
        [
            "#!/bin/bash",
            "# Written by `vjepa submit`; submit it again with `sbatch` and this file.",
            *(f"#SBATCH {line}" for line in _directives(job, config, array)),
            "",
            *config.setup,
            folder,
            f"cd {shlex.quote(str(job.code))} || exit 1  # the code snapshot taken at submission",
            'export MASTER_ADDR=${MASTER_ADDR:-$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)}',
            "export MASTER_PORT=$((10000 + SLURM_JOB_ID % 20000))  # must differ between jobs on the same node",
            'mkdir -p "$run/logs"',
            'rm -f "$run/unfinished"',
            "trap : TERM USR1  # this script survives the signals",
            "",
            "# Tasks ignore signals until the program has installed its handlers.",
            f"""{srun} --output="$run/logs/rank-%t.log" --open-mode=append \\""",
            f"""  bash -c 'trap "" TERM USR1; exec "$@"' task {start}""",
            "status=$?",
            *(_REQUEUE if job.kind == "train" else ()),
            "exit $status",
            "",
        ]
    )


def submit_script(script: Path) -> str:
    """Submit a script to SLURM; returns the job ID. Raises OSError with SLURM's message if it is rejected."""
    if shutil.which("sbatch") is None:
        raise FileNotFoundError("there is no sbatch here: submit from a login node of the cluster, or give --dry-run")
    done = subprocess.run(["sbatch", "--parsable", str(script)], capture_output=True, text=True)
    if done.returncode:
        asked = re.search(r"cpus-per-task=(\d+)", script.read_text())
        hint = f" (it asks for {asked[1]} cores per task; --cpus-per-task changes that)" if asked else ""
        raise OSError(f"SLURM rejected {script}: {done.stderr.strip()}{hint}")
    return done.stdout.strip().split(";")[0]


def ask_state(job: str) -> tuple[str, int] | None:
    """SLURM's state of a job and its number of requeues; None if SLURM does not know the job."""
    if not job or shutil.which("scontrol") is None:
        return None
    try:
        done = subprocess.run(
            ["scontrol", "show", "job", "--oneliner", job], capture_output=True, text=True, timeout=20
        )
    except subprocess.TimeoutExpired:
        return None
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        return None
    facts = dict(word.split("=", 1) for word in lines[0].split() if "=" in word)
    state = facts.get("JobState", "?")
    if state == "PENDING" and facts.get("Reason", "None") != "None":
        state += f" ({facts['Reason']})"
    return state, int(facts.get("Restarts", 0))


_REQUEUE = (
    "",
    "# Requeue if the run saved before its end (75), was signalled before it could handle it (138), or is preempted.",
    "# A job that was cancelled, or requeued by someone else, is no longer RUNNING and is left alone.",
    "job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}",
    "job=${job:-$SLURM_JOB_ID}",
    'now=$(scontrol show job --oneliner "$job")',
    "again=",
    '[ "$(cat "$run/unfinished" 2>/dev/null)" = "$SLURM_JOB_ID" ] && again=yes',
    "case $status in 75 | 138) again=yes ;; esac",
    "[[ $status != 0 && $now = *PreemptTime=[0-9]* ]] && again=yes",
    '[[ $again && $now = *JobState=RUNNING* ]] && scontrol requeue "$job"',
)


def _directives(job: Job, config: JobConfig, array: bool) -> list[str]:
    """Options of sbatch, one per line."""
    wanted = {
        "job-name": config.name or job.home.name,
        "nodes": config.nodes,
        "ntasks-per-node": config.tasks,
        "gpus-per-node": config.gpus_per_node,
        "cpus-per-task": config.cpus_per_task,
        "mem": config.mem,
        "time": config.time,
        "partition": config.partition,
        "account": config.account,
        "qos": config.qos,
        "constraint": config.constraint,
        "dependency": f"afterok:{config.after}" if config.after else "",
        "kill-on-invalid-dep": "yes" if config.after else "",  # or it would wait for ever after a failure
        "array": f"0-{len(job.folders) - 1}" if array else "",
        "signal": f"USR1@{config.notice}" if job.kind == "train" else "",
        "open-mode": "append",
        "output": job.home / "logs" / ("slurm-%A_%a.log" if array else "slurm-%j.log"),
    }
    lines = [f"--{name}={shlex.quote(str(value))}" for name, value in wanted.items() if value not in ("", 0, None)]
    return [*lines, "--requeue", *config.sbatch]


def _interpreter(config: JobConfig) -> str:
    return "python" if config.container or "--container" in config.srun else shlex.quote(sys.executable)


def _cpus(config: JobConfig) -> str:
    """The option for srun, which does not inherit it from sbatch."""
    return f"--cpus-per-task={config.cpus_per_task}" if config.cpus_per_task else ""
