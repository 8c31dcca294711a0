"""Actions and states that belong to a video: files beside it, and LeRobot data sets."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.loading.batch import DataConfig
from data.loading.loader import TrainLoader
from data.packing.pack import PackConfig, pack
from data.packing.sources import list_sources
from tests.data.conftest import MakeVideo

FRAMES = 10


@pytest.fixture
def folder(make_video: MakeVideo, tmp_path: Path) -> Path:
    """Two videos of ten frames."""
    for name in ("a", "b"):
        (tmp_path / "videos").mkdir(exist_ok=True)
        (tmp_path / "videos" / f"{name}.mp4").write_bytes(make_video(frames=FRAMES))
    return tmp_path / "videos"


def packed(folder: Path) -> tuple[list[str], dict[str, Any]]:
    """Reasons of rejections, and the sidecars by name."""
    import tarfile

    shards = folder.parent / "shards"
    report = pack(str(folder), str(shards), PackConfig(jobs=0))
    metas = {}
    for shard in sorted(shards.glob("*.tar")):
        with tarfile.open(shard) as archive:
            for member in archive:
                if member.name.endswith(".json"):
                    content = archive.extractfile(member)
                    assert content is not None
                    meta = json.loads(content.read())
                    metas[meta["path"]] = meta
    return [rejection.reason for rejection in report.rejected], metas


def write_csv(path: Path, rows: int, columns: int) -> None:
    """A header and rows of numbers row + column / 10."""
    lines = [",".join(f"x{column}" for column in range(columns))]
    lines += [",".join(f"{row + column / 10}" for column in range(columns)) for row in range(rows)]
    path.write_text("\n".join(lines) + "\n")


def test_arrays_and_tables_beside_a_video_go_into_its_sample(folder: Path) -> None:
    actions = np.arange(2 * (FRAMES - 1), dtype=np.float32).reshape(-1, 2)
    np.savez(folder / "a.npz", actions=actions, mass=np.float64(1.5))
    write_csv(folder / "a.states.csv", FRAMES, 3)
    write_csv(folder / "b.actions.csv", FRAMES - 1, 2)
    reasons, metas = packed(folder)
    assert not reasons
    assert metas["a.mp4"]["actions"] == actions.tolist()
    assert metas["a.mp4"]["values"] == {"mass": 1.5}
    assert metas["a.mp4"]["states"][4] == [4.0, 4.1, 4.2]
    assert metas["b.mp4"]["actions"][8] == [8.0, 8.1]
    assert "states" not in metas["b.mp4"]


def wrong_rows(folder: Path) -> None:
    write_csv(folder / "a.actions.csv", FRAMES, 2)


def given_twice(folder: Path) -> None:
    write_csv(folder / "a.actions.csv", FRAMES - 1, 2)
    (folder / "a.json").write_text(json.dumps({"actions": [[0.0]] * (FRAMES - 1)}))


def pickled(folder: Path) -> None:
    np.savez(folder / "a.npz", actions=np.array([{"x": 1}] * (FRAMES - 1), dtype=object))


def text(folder: Path) -> None:
    (folder / "a.states.csv").write_text("x\nleft\n")


def uneven(folder: Path) -> None:
    (folder / "a.states.csv").write_text("x,y\n1,2\n3\n")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (wrong_rows, "a.actions.csv: actions needs 9 rows, found 10"),
        (given_twice, "a.actions.csv: actions is also given by another file"),
        (pickled, "a.npz: Object arrays cannot be loaded"),
        (text, "a.states.csv: a header and rows of numbers expected"),
        (uneven, "a.states.csv, line 3: 2 numbers expected"),
    ],
)
def test_a_malformed_companion_rejects_its_video_alone(folder: Path, spoil: Any, reason: str) -> None:
    spoil(folder)
    reasons, metas = packed(folder)
    assert len(reasons) == 1
    assert reason in reasons[0]
    assert list(metas) == ["b.mp4"]


@pytest.fixture
def robot(make_video: MakeVideo, tmp_path: Path) -> Iterator[Path]:
    """A LeRobot data set (v2.1) of three episodes with two cameras and two tasks."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    folder = tmp_path / "robot"
    (folder / "meta").mkdir(parents=True)
    info = {
        "codebase_version": "v2.1", "chunks_size": 2, "fps": 12,
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
    }  # fmt: skip
    (folder / "meta" / "info.json").write_text(json.dumps(info))
    lines = []
    for episode in range(3):
        chunk, frames = f"chunk-{episode // 2:03d}", FRAMES + episode
        for camera in ("top", "wrist"):
            video = folder / "videos" / chunk / f"observation.images.{camera}" / f"episode_{episode:06d}.mp4"
            video.parent.mkdir(parents=True, exist_ok=True)
            video.write_bytes(make_video(frames=frames))
        table = {
            "frame_index": list(range(frames)),
            "action": [[episode + frame / 100, 0.5] for frame in range(frames)],
            "observation.state": [[float(frame)] * 3 for frame in range(frames)],
        }
        path = folder / "data" / chunk / f"episode_{episode:06d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(arrow.table(table), path)
        lines.append(json.dumps({"episode_index": episode, "tasks": [f"task {episode % 2}"], "length": frames}))
    (folder / "meta" / "episodes.jsonl").write_text("\n".join(lines))
    return folder


def test_every_camera_of_a_robot_s_episodes_is_a_sample_with_aligned_actions(robot: Path) -> None:
    reasons, metas = packed(robot)
    assert not reasons
    assert len(metas) == 6
    meta = metas["videos/chunk-001/observation.images.wrist/episode_000002.mp4"]
    assert meta["class"] == "task 0"
    assert meta["frames"] == FRAMES + 2
    assert [row[0] for row in meta["actions"]] == pytest.approx([2 + frame / 100 for frame in range(FRAMES + 1)])
    assert meta["states"][-1] == [FRAMES + 1.0] * 3


def test_a_robot_s_actions_follow_the_frames_of_a_clip(robot: Path) -> None:
    packed(robot)
    data = DataConfig(
        path=str(robot.parent / "shards"), frames=4, stride=2, crop=32, scale=(1.0, 1.0), aspect=(1.0, 1.0), flip=0.0,
        workers=0, arrays={"actions": "steps", "states": "frames"},
    )  # fmt: skip
    batches = iter(TrainLoader(data, 6, 0))
    batch = next(batches)
    batches.close()
    first = batch.arrays["states"][:, :, 0]
    assert (first.diff(dim=1) == 2).all()
    taken = (batch.arrays["actions"][..., 0] % 1 * 100).round()
    assert (taken[:, :, 0] == first[:, :-1]).all(), "the first action of a step is taken in its first frame"
    assert (taken[:, :, 1] == first[:, :-1] + 1).all()


def test_another_version_of_the_layout_is_refused_by_name(robot: Path) -> None:
    info = robot / "meta" / "info.json"
    info.write_text(info.read_text().replace("v2.1", "v3.0"))
    with pytest.raises(ValueError, match=r"info.json: codebase_version must be v2.0 or v2.1, .* got 'v3.0'"):
        list_sources(str(robot))


def test_an_episode_without_its_table_is_rejected_by_name(robot: Path) -> None:
    (robot / "data" / "chunk-000" / "episode_000001.parquet").unlink()
    reasons, metas = packed(robot)
    assert len(metas) == 4
    assert len(reasons) == 2
    assert "episode_000001.parquet" in reasons[0]
