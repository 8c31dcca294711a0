"""Loggers by config: each gets numbers and hyperparameters, one tracked run per run directory."""

import csv
import sys
import time
from pathlib import Path

import pytest

from launch.__main__ import main

CONFIG = str(Path(__file__).parents[2] / "configs" / "pretrain" / "tiny_cpu.yaml")


def train(quick: list[str], names: str, *more: str) -> int:
    return main(["train", CONFIG, *quick, "run.steps=3", "run.checkpoint_every=2", f"run.loggers=[{names}]", *more])


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "csv" / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_tensorboard_has_the_hyperparameters_and_one_point_per_step(quick: list[str], tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    assert train(quick, "tensorboard") == 0
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    board.Reload()
    assert [point.step for point in board.Scalars("loss")] == [0, 1, 2]
    content = board.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    found = HParamsPluginData.FromString(content).session_start_info.hparams
    assert found["encoder.width"].number_value == 24
    assert found["run.batch"].number_value == 8


def test_the_csv_is_there_without_any_other(quick: list[str], tmp_path: Path) -> None:
    assert train(quick, "") == 0
    assert len(rows(tmp_path / "run")) == 3
    assert not (tmp_path / "run" / "tensorboard").exists()


def test_mlflow_has_one_run_with_all_steps_also_after_an_interruption(quick: list[str], tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    from launch.training.trackers import STORE

    run = tmp_path / "run"
    assert train(quick, "mlflow", "run.steps=4") == 0
    (run / "checkpoints" / "step-0000004.ckpt").unlink()
    assert train(quick, "mlflow", "run.steps=4") == 0
    client = mlflow.MlflowClient(STORE.format(folder=run.resolve()))
    (found,) = client.search_runs([one.experiment_id for one in client.search_experiments()])
    assert found.info.run_id == (run / "mlflow_run.txt").read_text().strip()
    assert found.data.params["encoder.width"] == "24"
    assert {point.step for point in client.get_metric_history(found.info.run_id, "loss")} == {0, 1, 2, 3}


@pytest.mark.slow
def test_weights_and_biases_is_offline(quick: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    assert train(quick, "wandb") == 0
    (log,) = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    end = time.monotonic() + 60
    while b"gauges/rank" not in log.read_bytes() and time.monotonic() < end:
        time.sleep(0.1)  # another process writes the file, after the run has ended too
    assert b"gauges/rank" in log.read_bytes()
    assert b"encoder.width" in log.read_bytes()


def test_a_missing_package_says_which_extra_brings_it(
    quick: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert train(quick, "wandb") == 2
    assert "pip install 'vjepa-pretraining[wandb]'" in capsys.readouterr().err


def test_an_unknown_logger_is_answered_with_the_nearest(quick: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert train(quick, "tensorbord") == 2
    assert "did you mean tensorboard" in capsys.readouterr().err
