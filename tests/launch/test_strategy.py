"""Ranks that work together: the same buffers, an agreement read one step later, batches that arrive early, no rank that
stops to collect garbage."""

import gc
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning.callbacks import Callback

from launch.config import load_config
from launch.training import strategy
from launch.training.checkpoints import load_module
from launch.training.config import RunConfig, TrainConfig
from launch.training.feed import look_ahead
from launch.training.garbage import EVERY, GarbageCollector
from launch.training.preempt import Preemption
from launch.training.strategy import check_same_buffers, digest_buffers
from launch.training.trainer import train

ROOT = Path(__file__).parent.parent.parent
CONFIG = str(ROOT / "configs" / "pretrain" / "tiny_cpu.yaml")


@pytest.mark.slow
def test_two_ranks_train_as_one(quick: list[str], tmp_path: Path) -> None:
    words = [*quick, "data.workers=0", "run.timeout=120", "run.bucket_mb=1"]
    train(load_config(TrainConfig, CONFIG, [*words, f"run.output={tmp_path / 'one'}"]))
    port = f"--master-port={27_000 + os.getpid() % 2000}"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", port, "-m", "launch", "train"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, CONFIG, *words, f"run.output={tmp_path / 'two'}"], cwd=ROOT, env=environment, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()
    mine, theirs = load_module(tmp_path / "one").state_dict(), load_module(tmp_path / "two").state_dict()
    for name, value in mine.items():
        torch.testing.assert_close(theirs[name], value, atol=1e-5, rtol=1e-3, msg=name)


def test_buffers_that_differ_between_ranks_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    module = torch.nn.BatchNorm1d(3)
    check_same_buffers(module)  # alone: nothing to compare

    def gather(found: list[str], mine: str) -> None:
        found[:] = [mine, mine, "another"]

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    monkeypatch.setattr(strategy.torch.distributed, "all_gather_object", gather)
    with pytest.raises(RuntimeError, match=r"buffers of ranks \[2\] differ from those of rank 0.*running_mean"):
        check_same_buffers(module)


def test_a_digest_tells_any_change_of_a_buffer() -> None:
    module = torch.nn.BatchNorm1d(3)
    before = digest_buffers(module)
    assert digest_buffers(torch.nn.BatchNorm1d(3)) == before
    module.running_var[1] += 1e-6
    assert digest_buffers(module) != before


def test_what_the_ranks_agree_on_is_read_after_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is waited for in the step in which it is asked."""
    waited: list[int] = []

    class Work:
        def wait(self) -> None:
            waited.append(1)

    monkeypatch.setattr(torch.distributed, "all_reduce", lambda *arguments, **options: Work())
    preemption, told = Preemption(), iter([0, signal.SIGUSR1, 0])
    monkeypatch.setattr("launch.training.preempt.signals.received", lambda: next(told))
    preemption.group = object()
    found = []
    for step in (1, 2, 3):
        trainer = SimpleNamespace(global_step=step, max_steps=10, should_stop=False)
        preemption.on_train_batch_end(trainer, None, None, None, 0)
        found.append((preemption.signal, trainer.should_stop, len(waited)))
    assert found == [(0, False, 0), (0, False, 1), (signal.SIGUSR1, True, 2)]
    preemption.on_train_end(trainer, None)
    assert len(waited) == 3, "nothing stays under way"


def test_the_next_batch_is_on_its_way_before_one_is_handed_out() -> None:
    events: list[str] = []

    def note(event: str, number: int) -> int:
        events.append(f"{event} {number}")
        return number

    for number in look_ahead(range(3), lambda item: note("begin", item), lambda item: note("finish", item)):
        note("step", number)
    assert events == [
        "begin 0", "begin 1", "finish 0", "step 0", "begin 2", "finish 1", "step 1", "finish 2", "step 2",
    ]  # fmt: skip


def test_garbage_is_collected_between_steps_alone(quick: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    class Looking(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
            seen.append(gc.isenabled())

    seen: list[bool] = []
    train(load_config(TrainConfig, CONFIG, quick), [Looking()])
    assert seen == [False] * 6
    assert gc.isenabled()
    collected: list[int] = []
    monkeypatch.setattr(gc, "collect", collected.append)
    collector = GarbageCollector()
    for step in (1, EVERY, EVERY, EVERY + 1, 1000):
        collector.on_train_batch_end(SimpleNamespace(global_step=step), None, None, None, 0)
    assert collected == [1, 2]


def test_a_time_limit_and_a_bucket_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="run.timeout must be above 0 seconds, got -1"):
        RunConfig(timeout=-1)
    with pytest.raises(ValueError, match="run.bucket_mb must be at least 1, got 0"):
        RunConfig(bucket_mb=0)
