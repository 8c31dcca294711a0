"""A Lightning that has lost a part we use is named, with its version, before anything goes wrong."""

from importlib.metadata import version
from typing import Any

import pytest
import pytorch_lightning as lightning
import torch
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_utilities.core.rank_zero import rank_zero_only

from launch.training.lightning import (
    LightningChangedError,
    NullSignalConnector,
    choose_accelerator,
    find_callback,
    forget_batches,
    leave_signals_alone,
    log_interval,
)

VERSION = version("pytorch-lightning")


@pytest.fixture
def trainer() -> lightning.Trainer:
    return lightning.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, log_every_n_steps=7
    )


def lose(monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> None:
    """Take an attribute from an object, or from its class where it stands there."""
    monkeypatch.delattr(owner if name in vars(owner) else type(owner), name)


def test_the_installed_lightning_has_every_part(trainer: lightning.Trainer) -> None:
    assert log_interval(trainer) == 7
    assert find_callback(trainer, lightning.LightningModule) is None
    leave_signals_alone(trainer)
    assert isinstance(trainer._signal_connector, NullSignalConnector)


@pytest.mark.parametrize("name", ["_signal_connector", "fit_loop"])
def test_a_lost_part_of_the_trainer_is_named(
    trainer: lightning.Trainer, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    lose(monkeypatch, trainer, name)
    with pytest.raises(LightningChangedError, match=f"pytorch-lightning {VERSION} has no Trainer.{name}"):
        leave_signals_alone(trainer)


@pytest.mark.parametrize("name", ["received_sigterm", "register_signal_handlers", "teardown"])
def test_another_signal_connector_is_not_replaced_unseen(
    trainer: lightning.Trainer, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    lose(monkeypatch, trainer._signal_connector, name)
    with pytest.raises(LightningChangedError, match=f"has no .*Connector.{name}"):
        leave_signals_alone(trainer)


def test_a_loop_that_asks_for_signals_elsewhere_is_named(
    trainer: lightning.Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose(monkeypatch, trainer.fit_loop.epoch_loop, "_broadcast_sigterm_tensor")
    with pytest.raises(LightningChangedError, match="has no .*Loop._broadcast_sigterm_tensor"):
        leave_signals_alone(trainer)


@pytest.mark.parametrize(
    ("name", "ask"),
    [("log_every_n_steps", log_interval), ("callbacks", lambda trainer: find_callback(trainer, lightning.Callback))],
)
def test_a_lost_setting_is_named(
    trainer: lightning.Trainer, monkeypatch: pytest.MonkeyPatch, name: str, ask: Any
) -> None:
    lose(monkeypatch, trainer, name)
    with pytest.raises(LightningChangedError, match=f"has no Trainer.{name}, which launch/training/lightning.py uses"):
        ask(trainer)


def make_checkpoint() -> dict[str, Any]:
    loop = {
        "epoch_loop.batch_progress": {"total": {"ready": 12}, "is_last_batch": False},
        "epoch_progress": {"current": {"ready": 1}},
        "epoch_loop.state_dict": {"_batches_that_stepped": 12},
    }
    return {"loops": {"fit_loop": loop}}


def test_a_checkpoint_counts_steps_and_no_batches() -> None:
    checkpoint = make_checkpoint()
    forget_batches(checkpoint, 6)
    assert checkpoint["loops"]["fit_loop"] == {
        "epoch_loop.batch_progress": {"total": {"ready": 0}, "is_last_batch": False},
        "epoch_progress": {"current": {"ready": 0}},
        "epoch_loop.state_dict": {"_batches_that_stepped": 6},
    }


@pytest.mark.parametrize("name", ["epoch_loop.batch_progress", "epoch_progress", "epoch_loop.state_dict"])
def test_a_checkpoint_without_an_entry_is_named(name: str) -> None:
    checkpoint = make_checkpoint()
    del checkpoint["loops"]["fit_loop"][name]
    with pytest.raises(LightningChangedError, match=f"has no checkpoint entry {name}"):
        forget_batches(checkpoint, 6)


def test_a_rank_that_sees_only_its_own_gpu_trains_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 3 of 8, as with SLURM's --gpus-per-task; the GPU is not there, so nothing may be put on it."""
    monkeypatch.setattr(rank_zero_only, "rank", 0, raising=False)  # the trainer sets it for the whole process
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    for ranks, launched, name in ((8, False, "gpu"), (1, True, "gpu"), (8, True, "cpu")):
        assert choose_accelerator(name, ranks, launched) == name
    for name, value in (("NTASKS", 16), ("NTASKS_PER_NODE", 8), ("PROCID", 11), ("LOCALID", 3), ("NODEID", 1)):
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    trainer = lightning.Trainer(
        accelerator=choose_accelerator("gpu", 8, launched=True), devices=8, num_nodes=2, strategy="ddp", logger=False,
        plugins=[SLURMEnvironment(auto_requeue=False)], enable_checkpointing=False, enable_progress_bar=False,
    )  # fmt: skip
    assert trainer.strategy.root_device == torch.device("cuda", 0)
    assert (trainer.world_size, trainer.num_devices, trainer.local_rank) == (16, 8, 3)
