"""The online probe: right numbers, and no trace in the training."""

import csv
import logging
import os
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from data.generated.sprites import SyntheticConfig, write_videos
from data.loading.loader import DataConfig
from data.packing.pack import PackConfig, pack
from launch.__main__ import main
from probes.metrics import wilson
from probes.online import OnlineProbe, choose_samples, score_heads, undisturbed

ROOT = Path(__file__).parent.parent.parent
CONFIG = str(ROOT / "configs" / "pretrain" / "tiny_cpu.yaml")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 clips of 8 frames at 32 pixels, 4 of each of 12 classes."""
    folder = tmp_path_factory.mktemp("motions")
    write_videos(folder / "videos", 48, 0, SyntheticConfig(size=32, frames=8))
    pack(str(folder / "videos"), str(folder / "shards"), PackConfig(jobs=0))
    return folder / "shards"


@pytest.fixture
def words(shards: Path) -> list[str]:
    """A run of seconds on them."""
    return [
        "encoder.size=custom", "encoder.width=24", "encoder.depth=2", "encoder.heads=2", "encoder.patch=8",
        "predictor.width=12", "predictor.depth=1", "data.frames=4", "data.crop=32", "data.stride=1",
        "run.precision=fp32", "run.batch=8", "run.steps=4", "run.log_every=1", "health.pictures_every=null",
        "masks.ahead.kind=future", f"data.path={shards}",
    ]  # fmt: skip


def probing(shards: Path, every: int) -> list[str]:
    sets = [f"health.probe_train={shards}", f"health.probe_test={shards}"]
    return [*sets, f"health.probe_every={every}", "health.probe_clips=36"]


def read_column(folder: Path, name: str) -> dict[int, float]:
    with (folder / "csv" / "metrics.csv").open(newline="") as file:
        return {int(row["step"]): float(row[name]) for row in csv.DictReader(file) if row.get(name)}


def test_the_very_same_losses_with_the_probe_on_and_off(words: list[str], shards: Path, tmp_path: Path) -> None:
    for workers in (0, 1):
        words = [*words, f"data.workers={workers}"]
        on, off = tmp_path / f"on{workers}", tmp_path / f"off{workers}"
        assert main(["train", CONFIG, *words, *probing(shards, 2), f"run.output={on}"]) == 0
        assert main(["train", CONFIG, *words, f"run.output={off}"]) == 0
        assert len(read_column(on, "loss")) == 4
        assert read_column(on, "loss") == read_column(off, "loss")
        one, other = (torch.load(run / "checkpoints" / "step-0000004.ckpt", weights_only=True) for run in (on, off))
        assert all(torch.equal(one["state_dict"][name], other["state_dict"][name]) for name in one["state_dict"])
        assert torch.equal(one["random"][0]["torch"], other["random"][0]["torch"])


def test_accuracy_and_its_interval_are_logged_before_in_between_and_at_the_end(
    words: list[str], shards: Path, tmp_path: Path
) -> None:
    assert main(["train", CONFIG, *words, *probing(shards, 3), "data.workers=0", f"run.output={tmp_path / 'run'}"]) == 0
    for head in ("linear", "knn"):
        found, low, high = (read_column(tmp_path / "run", f"probe/{head}{end}") for end in ("", "_low", "_high"))
        assert set(found) == {0, 2, 3}  # what the run starts from, after step 3, after the last
        for step, share in found.items():
            assert (low[step], high[step]) == pytest.approx(wilson(round(share * 36), 36))


def test_a_run_that_was_asked_to_stop_is_not_probed(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probe = OnlineProbe(str(shards), str(shards), DataConfig(frames=4, stride=1, crop=32), 8, every=2)
    probed: list[int] = []
    monkeypatch.setattr(probe, "probe", lambda trainer, module: probed.append(trainer.global_step))
    for step, stop in ((1, False), (2, False), (3, False), (4, True), (5, False)):
        trainer = SimpleNamespace(global_step=step, max_steps=5, accumulate_grad_batches=1, should_stop=stop)
        probe.on_train_batch_end(trainer, None, None, None, step - 1)
    assert probed == [2, 5]


def test_nothing_is_left_behind() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.BatchNorm1d(2))
    model[1].eval()
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    with undisturbed(model, torch.device("cpu")):
        assert not any(part.training for part in model.modules())
        assert not torch.is_grad_enabled()
        model(torch.randn(4, 2))
    assert [part.training for part in model] == [True, False, True]
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]
    assert torch.equal(model[2].running_mean, torch.zeros(2))
    assert torch.is_grad_enabled()


def test_features_that_tell_the_classes_apart_are_judged_so() -> None:
    torch.manual_seed(0)
    labels = torch.arange(60) % 3
    known, asked = (torch.eye(3)[labels] * 4 + torch.randn(60, 3) for _ in range(2))
    with torch.no_grad():
        found = score_heads(known, labels, asked, labels, 3)
        noise = score_heads(torch.randn(60, 3), labels, torch.randn(60, 3), labels, 3)
    assert min(found["linear"].top1, found["knn"].top1) > 0.85
    assert max(noise["linear"].top1, noise["knn"].top1) < 0.6


def test_clips_are_chosen_once_and_at_random() -> None:
    chosen = choose_samples(1000, 100, seed=0)
    assert chosen == choose_samples(1000, 100, seed=0) == sorted(set(chosen))
    assert len(chosen) == 100
    assert len({place % 12 for place in chosen}) == 12  # labels may come in turn
    assert choose_samples(5, 0, seed=0) == choose_samples(5, 9, seed=0) == [0, 1, 2, 3, 4]


def test_sets_without_labels_are_refused_before_the_run(tmp_path: Path, shards: Path) -> None:
    write_videos(tmp_path / "videos", 2, 0, SyntheticConfig(size=32, frames=8))
    (tmp_path / "flat").mkdir()
    for number, video in enumerate(sorted((tmp_path / "videos").rglob("*.mp4"))):
        video.rename(tmp_path / "flat" / f"{number}.mp4")
    pack(str(tmp_path / "flat"), str(tmp_path / "shards"), PackConfig(jobs=0))
    with pytest.raises(ValueError, match="the online probe needs labels and the same classes in both sets"):
        OnlineProbe(str(shards), str(tmp_path / "shards"), DataConfig(frames=4, stride=1, crop=32), 8, every=1)


@pytest.mark.slow
def test_two_ranks_share_the_clips_and_find_the_same_accuracy(
    words: list[str], shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = [*words, *probing(shards, 2), "run.steps=2", "data.workers=0"]
    with caplog.at_level(logging.INFO):
        assert main(["train", CONFIG, *words, f"run.output={tmp_path / 'alone'}"]) == 0
    assert "linear probe" in caplog.text
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m", "launch"]
    subprocess.run(
        [*launcher, "train", CONFIG, *words, f"run.output={tmp_path / 'pair'}"],
        cwd=ROOT, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=240,
    )  # fmt: skip
    for name in ("probe/linear", "probe/knn"):
        alone, pair = read_column(tmp_path / "alone", name), read_column(tmp_path / "pair", name)
        assert set(alone) == {0, 1}
        assert alone[0] == pytest.approx(pair[0])  # untrained: the very same weights
