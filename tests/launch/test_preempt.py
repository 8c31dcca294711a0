"""Signals are ours from the first line to the last, and the ranks leave together."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from pytorch_lightning.callbacks import Callback

from launch.config import load_config
from launch.training import signals
from launch.training.checkpoints import list_checkpoints
from launch.training.config import TrainConfig
from launch.training.preempt import Preemption
from launch.training.trainer import train

ROOT = Path(__file__).parent.parent.parent
CONFIG = str(ROOT / "configs" / "pretrain" / "tiny_cpu.yaml")


@pytest.fixture
def handlers() -> Iterator[None]:
    """Our handlers, for one test."""
    before = {number: signal.getsignal(number) for number in (*signals.OTHERS, signal.SIGINT)}
    signals.install()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    signals.forget()


class Asking(Callback):
    """Sends this process a signal after a step, and looks at who answers."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.found: list[object] = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        self.found = [signal.getsignal(number) for number in signals.OTHERS]
        if trainer.global_step == 2:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_ends_the_run_after_the_step_and_lightning_leaves_the_handlers_alone(
    quick: list[str], tmp_path: Path, handlers: None, number: int
) -> None:
    asking = Asking(number)
    with pytest.raises(signals.Interrupted, match=r"after step [23] of 6, saved in .*; the same command continues"):
        train(load_config(TrainConfig, CONFIG, quick), [asking])
    assert asking.found == [signals._note, signals._note]
    assert next(iter(list_checkpoints(tmp_path / "run"))) in (2, 3)


@pytest.mark.slow
def test_a_signal_while_the_program_starts_is_answered_after_the_first_step(quick: list[str], tmp_path: Path) -> None:
    words = [sys.executable, "-m", "launch", "train", CONFIG, *quick, "run.steps=100000"]
    process = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True, preexec_fn=_deaf)
    for _ in range(40):  # from before the interpreter is up
        time.sleep(0.02)
        process.send_signal(signal.SIGUSR1)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == signals.UNFINISHED, said
    assert "stopped by SIGUSR1 after step" in said
    assert next(iter(list_checkpoints(tmp_path / "run"))) < 10


def test_torchrun_ranks_stop_together_though_one_alone_is_told(quick: list[str], tmp_path: Path) -> None:
    port = f"--master-port={29_000 + os.getpid() % 2000}"
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", port, "-m", "launch", "train", CONFIG]
    steps = ["run.steps=100000", "run.checkpoint_every=100000", "data.workers=0"]
    process = subprocess.Popen(
        [*words, *quick, *steps],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    csv, end = tmp_path / "run" / "csv" / "metrics.csv", time.monotonic() + 120
    while not csv.is_file():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.05)
    os.kill(_child(process.pid), signal.SIGUSR1)
    said = process.communicate(timeout=120)[1]
    assert said.count("stopped by SIGUSR1 after step") == 2, said
    assert len(list_checkpoints(tmp_path / "run")) == 1


def test_ranks_that_begin_at_different_steps_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    preemption = Preemption()
    monkeypatch.setattr(preemption, "agree", lambda number: max(number, {-40: -30, 40: 40}[number]))
    with pytest.raises(ValueError, match="different checkpoints, of step 30 and of step 40"):
        preemption.on_train_start(SimpleNamespace(global_step=40, world_size=1), None)


def _deaf() -> None:
    """As the script of a job does: a signal is ignored until the program has handlers."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def _child(parent: int) -> int:
    """The last process that torchrun started: rank 1."""
    return int(Path(f"/proc/{parent}/task/{parent}/children").read_text().split()[-1])


def test_a_stopped_run_does_not_stop_the_next_one_of_the_process(quick: list[str], tmp_path: Path) -> None:
    config = load_config(TrainConfig, CONFIG, quick)
    with pytest.raises(signals.Interrupted):
        train(config, [Asking(signal.SIGINT)])
    assert signals.received() == 0
    signals._received.append(signal.SIGINT)  # Ctrl-C in the last step of a run: nobody asked any more
    assert train(config).global_step == 6


def test_a_signal_from_before_the_run_counts_where_the_process_is_the_command(handlers: None) -> None:
    signals._received.append(signal.SIGTERM)
    signals.forget_earlier()
    assert signals.received() == signal.SIGTERM
