"""Windows of videos without labels: what they show, which set they are in."""

from pathlib import Path

import numpy as np
import pytest

from data.decode import decode_frames, probe_video
from data.generated.videos import encode_clip
from data.packing.windows import WindowConfig, split_starts, write_windows

SMALL = WindowConfig(frames=4, stride=2, hop=3, short_side=32, held_out=0.4)


@pytest.fixture
def brighter(tmp_path: Path) -> Path:
    """A video of 40 frames, each brighter than the one before."""
    frames = np.repeat(np.arange(40, dtype=np.uint8)[:, None, None, None] * 6, 48, axis=1)
    path = tmp_path / "videos" / "brighter.mp4"
    path.parent.mkdir()
    encode_clip(np.ascontiguousarray(np.broadcast_to(frames, (40, 48, 64, 3))), path, 8, 10)
    return path


def test_windows_are_shown_both_ways_and_no_frame_is_in_both_sets(brighter: Path, tmp_path: Path) -> None:
    counts = write_windows(str(brighter.parent), tmp_path / "out", "direction", SMALL)
    starts = split_starts(40, SMALL)
    assert counts == {name: 2 * len(found) for name, found in starts.items()}
    brightest = {"train": 0.0, "test": 1e9}
    for subset, edge in (("train", max), ("test", min)):
        for path in (tmp_path / "out" / subset).rglob("*.mp4"):
            content = path.read_bytes()
            assert probe_video(content).frames == 4
            means = decode_frames(content, [0, 1, 2, 3], "auto").astype(float).mean((1, 2, 3))
            assert (np.diff(means) > 0).all() == (path.parent.name == "forward")
            brightest[subset] = edge(brightest[subset], edge(means))
    assert brightest["train"] < brightest["test"]


def test_source_labels_are_the_videos(brighter: Path, tmp_path: Path) -> None:
    write_windows(str(brighter), tmp_path / "out", "source", SMALL)
    assert [path.name.split("-")[0] for path in (tmp_path / "out" / "train").iterdir()] == ["brighter"]


def test_a_video_without_windows_in_both_sets_is_no_source(
    brighter: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    encode_clip(np.zeros((9, 48, 64, 3), dtype=np.uint8), brighter.parent / "short.mp4", 8, 10)
    write_windows(str(brighter.parent), tmp_path / "out", "source", SMALL)
    for subset in ("train", "test"):
        assert [path.name.split("-")[0] for path in (tmp_path / "out" / subset).iterdir()] == ["brighter"]
    assert "1 videos are too short for windows in both sets and left out: short" in caplog.text


def test_older_windows_are_not_mixed_in(brighter: Path, tmp_path: Path) -> None:
    write_windows(str(brighter), tmp_path / "out", "direction", SMALL)
    with pytest.raises(ValueError, match=r"out/train must be empty, or older windows would be mixed in"):
        write_windows(str(brighter), tmp_path / "out", "source", SMALL)


def test_a_video_too_short_is_refused_in_words(brighter: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no video has the 31 frames that a window needs"):
        write_windows(str(brighter), tmp_path / "out", "direction", WindowConfig(frames=16, stride=2))
