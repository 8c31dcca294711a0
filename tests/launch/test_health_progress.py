"""What a user sees of a run's progress, on a terminal and in a log."""

import io
import sys
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from launch.training.progress import Progress
from launch.training.watchers.board import warn
from launch.training.watchers.speed import Speed


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def make_trainer(steps: int = 1000, first: int = 0) -> Any:
    speed = Speed()
    speed.latest = {"speed/clips_per_s": 312.4, "speed/data_wait": 0.034}
    return SimpleNamespace(
        is_global_zero=True, accumulate_grad_batches=2, global_step=first, log_every_n_steps=10, max_steps=steps,
        callbacks=[speed], loggers=[],
    )  # fmt: skip


def run(progress: Progress, trainer: Any, steps: int, seconds: Any = None) -> None:
    """Steps of two accumulated batches each."""
    module: Any = None
    progress.on_train_start(trainer, module)
    for number in range(2 * steps):
        trainer.global_step += number % 2
        if seconds:
            seconds(0.5)
        progress.on_train_batch_end(trainer, module, {"loss": torch.tensor(0.51234)}, None, number)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    now = [1000.0]
    monkeypatch.setattr("launch.training.progress.time.monotonic", lambda: now[0])
    return lambda seconds: now.__setitem__(0, now[0] + seconds)


def test_a_log_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch, clock: Any) -> None:
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    run(Progress(line_interval=30), make_trainer(), 70, clock)
    lines = log.getvalue().splitlines()
    assert lines == [
        "step 10 of 1,000, loss 0.5123, 312 clips/s, 3 % data wait, 0:16:30 left",
        "step 40 of 1,000, loss 0.5123, 312 clips/s, 3 % data wait, 0:16:00 left",
        "step 70 of 1,000, loss 0.5123, 312 clips/s, 3 % data wait, 0:15:30 left",
    ]
    assert "\r" not in log.getvalue()


def test_the_last_step_is_told_however_soon(monkeypatch: pytest.MonkeyPatch, clock: Any) -> None:
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    run(Progress(line_interval=1e9), make_trainer(steps=14), 14, clock)
    assert [line.split(",")[0] for line in log.getvalue().splitlines()] == ["step 10 of 14", "step 14 of 14"]


def test_time_left_of_a_continued_run_counts_its_own_steps(clock: Any) -> None:
    progress, trainer = Progress(), make_trainer(steps=1000, first=900)
    run(progress, trainer, 10, clock)
    assert progress._time_left(trainer) == timedelta(seconds=90)


def test_a_terminal_gets_one_bar_and_warnings_a_line_of_their_own(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    progress, trainer = Progress(), make_trainer(first=900)
    run(progress, trainer, 20)
    assert progress.bar is not None
    progress.bar.refresh()
    assert "920/1000" in screen.getvalue()
    assert "loss 0.5123, 312 clips/s, 3 % data wait" in screen.getvalue()
    warn(trainer, "collapse", "words")
    assert "step 920: words" in caplog.text
    progress.on_train_end(trainer, Any)
    assert progress.bar is None
    assert screen.getvalue().endswith("\n")


def test_other_ranks_are_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    screen, trainer = Terminal(), make_trainer()
    monkeypatch.setattr(sys, "stderr", screen)
    trainer.is_global_zero = False
    run(Progress(line_interval=0), trainer, 10)
    assert screen.getvalue() == ""
