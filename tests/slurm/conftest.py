"""One SLURM for all tests of this folder, and one run that nobody disturbed."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import cluster
import pytest

from data.generated.sprites import SyntheticConfig, write_videos
from data.packing.pack import PackConfig, pack

STEPS = 300


@pytest.fixture(scope="session")
def slurm() -> Iterator[None]:
    """A running SLURM; skips, and says why, where there can be none."""
    reason = cluster.missing()
    if reason:
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        before = dict(os.environ)
        for name in [name for name in os.environ if name.startswith(("SLURM", "MASTER", "SBATCH"))]:
            del os.environ[name]
        # the names of the nodes do not resolve
        os.environ.update(SLURM_CONF=f"{folder}/slurm.conf", MASTER_ADDR="127.0.0.1", OMP_NUM_THREADS="1")
        try:
            subprocess.run([cluster.HERE / "start.sh", folder], check=True, timeout=60)
            yield
        finally:
            subprocess.run([cluster.HERE / "stop.sh", folder], timeout=60)
            os.environ.clear()
            os.environ.update(before)


@pytest.fixture(scope="session")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A run of some seconds, but for its folder."""
    folder = tmp_path_factory.mktemp("motions")
    write_videos(folder / "videos", 48, 0, SyntheticConfig(size=32, frames=8))
    pack(str(folder / "videos"), str(folder / "shards"), PackConfig(jobs=0))
    return [
        "encoder.size=custom", "encoder.width=24", "encoder.depth=1", "encoder.heads=2", "encoder.patch=16",
        "predictor.width=12", "predictor.depth=1", "data.frames=4", "data.crop=32", "data.stride=1", "data.workers=1",
        "run.precision=fp32", "run.batch=4", f"run.steps={STEPS}", "run.log_every=1", "run.checkpoint_every=100",
        "run.accelerator=cpu", "masks.ahead.kind=future", "health.pictures_every=null", "health.matrix_tflops=1",
        f"data.path={folder / 'shards'}",
    ]  # fmt: skip


@pytest.fixture(scope="session")
def undisturbed(slurm: None, words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run on two nodes that was left alone."""
    folder = tmp_path_factory.mktemp("undisturbed")
    job = cluster.submit([*words, f"run.output={folder}"])
    assert cluster.wait_for_end(job, folder) == "COMPLETED", cluster.logs(folder)
    return folder
