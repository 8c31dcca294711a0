"""What watches a run: when it reads, when it warns, when it stops."""

import csv
import logging
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.flop_counter import FlopCounterMode

from launch.__main__ import main
from launch.config import load_config
from launch.training.config import HealthConfig, TrainConfig
from launch.training.health import watchers
from launch.training.trainer import train
from launch.training.watchers.collapse import CollapseReader
from launch.training.watchers.skips import DivergedError
from launch.training.watchers.speed import Speed, describe_data_wait
from launch.training.watchers.watch import Watch
from vjepa.gauges import NAMES
from vjepa.jepa import JEPA, JepaConfig

ROOT = Path(__file__).parent.parent.parent
CONFIG = str(ROOT / "configs" / "pretrain" / "tiny_cpu.yaml")


def read_columns(folder: Path) -> dict[str, dict[int, float]]:
    """name -> step -> value of a run's csv."""
    columns: dict[str, dict[int, float]] = {}
    with (folder / "csv" / "metrics.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if value and name != "step":
                    columns.setdefault(name, {})[int(row["step"])] = float(value)
    return columns


def read_board(folder: Path) -> EventAccumulator:
    board = EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0, "tensors": 0})
    board.Reload()
    return board


class Poison(Callback):
    """Spoils the gradients of some steps."""

    def __init__(self, steps: range) -> None:
        self.steps = steps

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        if trainer.global_step in self.steps:
            next(parameter for parameter in module.parameters() if parameter.grad is not None).grad.fill_(math.nan)


def test_a_run_logs_every_gauge_to_csv_and_tensorboard(words: list[str], tmp_path: Path) -> None:
    assert main(["train", CONFIG, *words, "health.pictures_every=4"]) == 0
    found = read_columns(tmp_path / "run")
    for name in NAMES:
        assert set(found[f"gauges/{name}"]) == {0, 1, 3, 5}, name  # after steps 1, 2, 4 and 6
    for name in ("context_spread", "context_rank", "context_rankme", "context_cosine", "prediction_spread/ahead"):
        assert f"gauges/{name}" in found
    assert set(found["lengths/ahead/context"].values()) == {0.5}
    for name in ("clips_per_s", "step_ms", "data_wait", "utilisation", "skipped_samples"):
        assert len(found[f"speed/{name}"]) == 5, name  # the first step is left out
    assert all(0 <= share < 1 for share in found["speed/data_wait"].values())
    assert set(found["warnings/skipped_updates"].values()) == {0}
    assert {"grad_norm/context_encoder", "grad_norm/predictor", "loss/ahead", "schedule/lr"} <= set(found)
    board = read_board(tmp_path / "run")
    assert set(found) <= set(board.Tags()["scalars"])
    for name in ("masks", "features", "error"):
        assert [picture.step for picture in board.Images(f"pictures/{name}")] == [0, 3, 5]


@pytest.mark.parametrize("words_of_objective", [
    ["objective=views", "regulariser.variance=1.0"],
    ["objective=dense", "dense.levels=2"],
    ["teacher.source=pixels"],
])  # fmt: skip
def test_every_objective_can_be_watched(words: list[str], words_of_objective: list[str], tmp_path: Path) -> None:
    more = ["run.steps=2", "health.pictures_every=1", "optim.warmup_steps=0"]
    assert main(["train", CONFIG, *words, *words_of_objective, *more]) == 0
    assert read_columns(tmp_path / "run")["gauges/rank"][1] > 1
    assert "pictures/features" in read_board(tmp_path / "run").Tags()["images"]


def test_watching_changes_no_loss(words: list[str], tmp_path: Path) -> None:
    assert main(["train", CONFIG, *words, "health.every=1", "health.pictures_every=1"]) == 0
    seldom = [word.replace("/run", "/seldom") for word in words]
    assert main(["train", CONFIG, *seldom, "health.every=1000", "health.pictures_every=null"]) == 0
    assert read_columns(tmp_path / "run")["loss"] == read_columns(tmp_path / "seldom")["loss"]


def test_of_accumulated_batches_only_the_last_is_looked_at() -> None:
    seen: list[int] = []
    reader = SimpleNamespace(
        name="seen", every=2, read=lambda trainer, *_: seen.append(trainer.global_step), settle=lambda *_, **__: None
    )
    module: Any = SimpleNamespace(watching=False, watched=None, watched_video=None)
    trainer: Any = SimpleNamespace(
        is_global_zero=True, accumulate_grad_batches=3, global_step=0, max_steps=5, loggers=[]
    )
    watch, asked = Watch([reader]), []
    for number in range(15):
        watch.on_train_batch_start(trainer, module, None, number)
        if module.watching:
            asked.append(number)
            module.watched, module.watched_video = object(), torch.zeros(1)
        trainer.global_step = (number + 1) // 3
        watch.on_train_batch_end(trainer, module, None, None, number)
        assert module.watched is None
        assert module.watched_video is None
    assert asked == [2, 5, 11, 14]
    assert seen == [1, 2, 4, 5]  # the first, every second, the last


def test_a_collapse_is_announced_once_a_crossing(caplog: pytest.LogCaptureFixture) -> None:
    alarm = CollapseReader(100, min_rank=0.1, min_spread=0.05)
    trainer: Any = SimpleNamespace(is_global_zero=True, global_step=500, loggers=[])
    with caplog.at_level(logging.WARNING):
        for rank, spread in ((50, 0.9), (5, 0.9), (4, 0.9), (10.5, 0.9), (9, 0.9), (30, 0.9), (50, 0.01)):
            alarm.check(trainer, rank, spread, 100)
    told = [record.getMessage() for record in caplog.records]
    assert ["COLLAPSING" in message for message in told] == [True, False, True]
    assert "step 500: THE REPRESENTATION IS COLLAPSING: effective rank 5.0 of 100" in told[0]
    assert "recovered" in told[1]
    assert "spread across clips 0.010" in told[2]


def test_fresh_weights_of_few_directions_are_no_collapse(caplog: pytest.LogCaptureFixture) -> None:
    alarm = CollapseReader(100, min_rank=0.1, min_spread=0.05)
    trainer: Any = SimpleNamespace(is_global_zero=True, global_step=1, loggers=[])
    alarm.check(trainer, 5, 0.9, 100)
    alarm.check(trainer, math.nan, math.nan, 100)
    assert not caplog.records
    alarm.check(trainer, 50, 0.9, 100)
    alarm.check(trainer, 5, 0.9, 100)
    assert len(caplog.records) == 1


def test_a_run_that_stays_collapsed_stops_with_the_advice_that_works(words: list[str], tmp_path: Path) -> None:
    limits = ["health.every=1", "health.min_rank=0.99", "optim.warmup_steps=1", "run.steps=8"]
    config = load_config(TrainConfig, CONFIG, [*words, *limits, "health.max_collapsed=3"])
    with pytest.raises(DivergedError, match=r"collapsed for 4 readings .* after step 5 .*lower optim.lr, and keep"):
        train(config)


def test_a_step_that_went_wrong_can_be_watched(words: list[str], tmp_path: Path) -> None:
    config = load_config(TrainConfig, CONFIG, [*words, "health.every=1", "health.pictures_every=1", "run.steps=3"])
    train(config, [Blind(1)])
    assert set(read_columns(tmp_path / "run")["gauges/rank"]) == {0, 2}
    assert read_columns(tmp_path / "run")["warnings/skipped_updates"][2] == 1


class Blind(Callback):
    """Lets one step's clips become infinite on their way into the context encoder."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_start(self, trainer: Any, module: Any) -> None:
        def spoil(layer: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
            return output * math.inf if trainer.global_step == self.step else output

        for encoder in (module.context_encoder, module.target_encoder.encoder):
            encoder.patch_embed.register_forward_hook(spoil)


def test_a_collapsed_run_says_so_in_tensorboard(
    words: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert main(["train", CONFIG, *words, "optim.warmup_steps=2", "health.min_rank=0.99", "health.every=1"]) == 0
    assert read_columns(tmp_path / "run")["warnings/collapsed"] == {0: 0, 1: 0, 2: 1, 3: 1, 4: 1, 5: 1}
    board = read_board(tmp_path / "run")
    (text,) = board.Tensors("warnings/collapse/text_summary")
    assert b"step 3: THE REPRESENTATION IS COLLAPSING" in text.tensor_proto.string_val[0]
    assert sum("COLLAPSING" in record.getMessage() for record in caplog.records) == 1


def test_a_poisoned_update_is_reported_and_training_goes_on(
    words: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = train(load_config(TrainConfig, CONFIG, [*words, "health.max_skips=2"]), [Poison(range(2, 4))])
    found = read_columns(tmp_path / "run")["warnings/skipped_updates"]
    assert [found[step] for step in range(6)] == [0, 0, 1, 2, 2, 2]
    assert sum("UPDATES SKIPPED" in record.getMessage() for record in caplog.records) == 2
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())


def test_too_many_skips_stop_the_run_and_name_the_last_good_checkpoint(words: list[str], tmp_path: Path) -> None:
    config = load_config(TrainConfig, CONFIG, [*words, "health.max_skips=1", "run.checkpoint_every=1", "run.keep=10"])
    with pytest.raises(ValueError, match="the last 2 updates were all skipped, health.max_skips allows 1") as stopped:
        train(config, [Poison(range(3, 100))])
    assert f"The last good checkpoint is {tmp_path / 'run' / 'checkpoints' / 'step-0000003.ckpt'}" in str(stopped.value)


def test_waiting_for_data_is_told_from_working(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("launch.training.watchers.speed.time.perf_counter", lambda: now[0])
    monkeypatch.setattr(JepaConfig, "clip_flops", lambda config, clips: 5e11)
    speed = Speed(matrix_tflops=100)
    trainer: Any = SimpleNamespace(
        is_global_zero=True, accumulate_grad_batches=1, global_step=0, log_every_n_steps=2, world_size=2,
        callbacks=[], loggers=[], precision="32-true",
    )  # fmt: skip
    module: Any = make_module()
    speed.on_train_start(trainer, module)
    for number in range(4):
        now[0] += 0.1 if number else 30  # waiting; the first step is not counted
        speed.on_train_batch_start(trainer, module, None, number)
        now[0] += 0.3
        trainer.global_step, module.position = number + 1, 64 * (number + 1)
        speed.on_train_batch_end(trainer, module, None, SimpleNamespace(size=32), number)
    assert speed.latest["speed/data_wait"] == pytest.approx(0.25)
    assert speed.latest["speed/clips_per_s"] == pytest.approx(64 / 0.4)  # over both ranks
    assert speed.latest["speed/step_ms"] == pytest.approx(400)
    assert speed.latest["speed/utilisation"] == pytest.approx(80 * 5e11 / 1e14)


def test_a_slow_loader_warns_once_how_many_workers_would_keep_up(caplog: pytest.LogCaptureFixture) -> None:
    speed, trainer = Speed(workers=3), SimpleNamespace(is_global_zero=True, global_step=7, loggers=[])
    for waited in (0.5, 0.5, 0.0, 0.5, 0.5):
        speed._warn_if_slow(trainer, 60, waited)  # type: ignore[arg-type]
    assert not caplog.messages, "twice in a row may be a start"
    speed._warn_if_slow(trainer, 60, 0.0)  # type: ignore[arg-type]
    for waited in (0.55, 0.625, 0.70, 0.625):
        speed._warn_if_slow(trainer, 10, waited)  # type: ignore[arg-type]
    (said,) = caplog.messages
    assert "62% of the time is spent waiting for clips from 3 workers" in said
    assert "about 8 would keep up" in said


def test_the_first_seconds_say_nothing_of_hunger(caplog: pytest.LogCaptureFixture) -> None:
    speed, trainer = Speed(workers=3), SimpleNamespace(is_global_zero=True, global_step=7, loggers=[])
    for _ in range(20):
        speed._warn_if_slow(trainer, 1, 0.5)  # type: ignore[arg-type]
    assert not caplog.messages


@pytest.mark.parametrize(
    ("waited", "workers", "said"),
    [
        (0.61, 0, "about 2 would"),
        (0.73, 0, "about 3 would"),
        (0.5, 4, "about 8 would"),
        (0.99, 4, "more workers alone"),
    ],
)
def test_workers_that_would_keep_up(waited: float, workers: int, said: str) -> None:
    assert said in describe_data_wait(waited, workers)


@pytest.mark.parametrize("words", [[], ["teacher.source=pixels"], ["objective=dense", "dense.levels=2"]])
def test_counted_arithmetic_is_that_which_torch_counts(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(TrainConfig, CONFIG, words).jepa
    module = JEPA(config)
    monkeypatch.setattr(module, "log_dict", lambda *_, **__: None)
    clips = torch.randint(0, 256, (2, 8, 64, 64, 3), dtype=torch.uint8)
    with FlopCounterMode(display=False) as counter:
        with torch.autocast("cpu", torch.bfloat16):  # attention is written out there, and so counted
            loss = module.training_step(SimpleNamespace(clips=clips, position=2), 0)
        loss.backward()
    assert config.clip_flops(2) == pytest.approx(counter.get_total_flops() / 2, rel=0.015)


def make_module() -> Any:
    """A JEPA without its weights."""
    module = JEPA.__new__(JEPA)
    torch.nn.Module.__init__(module)
    module.config = JepaConfig()
    module._device = torch.device("cpu")
    return module


@pytest.mark.parametrize(("field", "value"), [
    ("every", 0), ("probe_every", 0), ("max_skips", -1), ("pictures_every", -1), ("probe_clips", -1), ("min_rank", 1.0),
    ("min_spread", -0.1), ("matrix_tflops", -1.0), ("probe_train", "shards"),
])  # fmt: skip
def test_a_health_setting_that_cannot_be_is_refused_by_name(field: str, value: float | str) -> None:
    with pytest.raises(ValueError, match=f"health.{field}"):
        HealthConfig(**{field: value})  # type: ignore[arg-type]


def test_what_is_switched_off_is_not_there(words: list[str]) -> None:
    config = load_config(TrainConfig, CONFIG, [*words, "health.pictures_every=null"])
    found = watchers(config.health, config.data, 4)
    (watch,) = [one for one in found if isinstance(one, Watch)]
    assert [reader.name for reader in watch.readers] == ["gauges"]
    assert not [one for one in found if type(one).__name__ == "OnlineProbe"]
