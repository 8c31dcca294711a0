"""Collapse provoked on purpose is announced within 200 steps, and a healthy run is left in peace."""

import csv
from pathlib import Path

import pytest

from data.generated.kinds import find_kind
from data.generated.sprites import write_videos
from data.generated.videos import write_set
from data.packing.pack import PackConfig, pack
from launch.__main__ import main
from launch.studies.demo import CONFIG, VIDEO

OFF = ["regulariser.variance=0", "regulariser.covariance=0", "regulariser.temporal=0"]
PROVOKED = {
    "regulariser_off": OFF,
    "no_memory": [*OFF, "teacher.momentum=0", "teacher.final_momentum=0"],
    "huge_rate": ["optim.lr=0.1"],
}


@pytest.fixture(scope="module")
def motions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """600 clips of the demo's."""
    folder = tmp_path_factory.mktemp("motions")
    write_videos(folder / "videos", 600, 0, VIDEO, processes=2)
    pack(str(folder / "videos"), str(folder / "shards"), PackConfig(jobs=0))
    return folder / "shards"


def train(motions: Path, folder: Path, words: list[str]) -> None:
    """120 steps of the demo with a reading every 10."""
    quick = ["health.every=10", "health.pictures_every=null", "health.matrix_tflops=1", "run.progress=false"]
    place = [f"data.path={motions}", f"run.output={folder}", "run.steps=120"]
    assert main(["train", str(CONFIG), *place, *quick, *words]) == 0


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", PROVOKED)
def test_a_collapse_is_announced_within_200_steps(
    motions: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    train(motions, tmp_path / "run", PROVOKED[name])
    assert "THE REPRESENTATION IS COLLAPSING" in caplog.text


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_healthy_run_is_left_in_peace(motions: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(motions, tmp_path / "run", [])
    assert "COLLAPSING" not in caplog.text


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_small_recipe_keeps_its_rank_on_a_pendulum_where_the_old_one_loses_it(tmp_path: Path) -> None:
    pendulum = find_kind("bodies")
    write_set(pendulum, pendulum.config(scenario="pendulum"), tmp_path, 320, 0, processes=2)
    ranks = {}
    for name in ("pretrain/small", "bench/motions_cpu"):
        run = tmp_path / name.split("/")[1]
        words = ["data.crop=48", "run.steps=60", "run.precision=fp32", "health.every=60", "health.pictures_every=null"]
        place = [f"data.path={tmp_path / 'shards'}", f"run.output={run}", "health.matrix_tflops=1"]
        assert main(["train", str(CONFIG.parents[1] / f"{name}.yaml"), *words, *place]) == 0
        with (run / "csv" / "metrics.csv").open() as file:
            ranks[name] = [float(row["gauges/rank"]) for row in csv.DictReader(file) if row.get("gauges/rank")][-1]
    assert ranks["pretrain/small"] > 8
    assert ranks["bench/motions_cpu"] < 4
