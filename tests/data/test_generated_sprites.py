"""Generated videos: the label is the motion, one frame says nothing, the same arguments give the same bytes."""

import io
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest

from data.generated.painting import Look, Poses, paint_sprite, unpack_pixels
from data.generated.sprites import CLASSES, SyntheticConfig, render_clip, write_videos
from data.generated.videos import encode_clip

SMALL = SyntheticConfig(size=32, frames=8)
Array = npt.NDArray[Any]


def test_a_clip_is_a_pure_function_of_its_arguments() -> None:
    clip = render_clip(3, 7, SMALL)
    assert clip.shape == (8, 32, 32, 3)
    assert clip.dtype == np.uint8
    np.testing.assert_array_equal(clip, render_clip(3, 7, SMALL))
    assert (clip != render_clip(3, 8, SMALL)).mean() > 0.5


def test_the_first_frame_is_the_same_for_all_labels_and_the_rest_is_not() -> None:
    clips = np.stack([render_clip(label, 11, SMALL) for label in range(len(CLASSES))])
    assert len(CLASSES) == len(set(CLASSES)) == 12
    assert (clips[:, 0] == clips[0, 0]).all()
    for label in range(1, len(CLASSES)):
        assert (clips[label, 1:] != clips[:label, 1:]).any(axis=(1, 2, 3, 4)).all()


@pytest.fixture(scope="module")
def clips() -> tuple[Array, Array]:
    labels = np.arange(720) % len(CLASSES)
    return np.stack([render_clip(int(label), 500 + seed, SMALL) for seed, label in enumerate(labels)]), labels


def test_a_single_frame_says_nothing_and_the_motion_much(clips: tuple[Array, Array]) -> None:
    frames, labels = clips
    chance = 1 / len(CLASSES)
    for time in (0, 4, 7):
        thumbnails = frames[:, time].reshape(-1, 8, 4, 8, 4, 3).mean(axis=(2, 4)).reshape(len(frames), -1)
        contrasts = frames[:, time].std(axis=(1, 2))
        assert _classify(np.concatenate([thumbnails, contrasts], axis=1), labels) < chance + 0.06
    assert _classify(_measure_flow(frames), labels) > 4 * chance


def test_places_angles_and_sizes_are_spread_alike_at_all_times(monkeypatch: pytest.MonkeyPatch) -> None:
    config = SyntheticConfig(size=32, camera_shake=0, distractors=(0, 0), sprites=(20, 20))
    poses: list[Poses] = []
    monkeypatch.setattr("data.generated.sprites.paint_sprite", lambda frames, look, pose: poses.append(pose))
    for label, name in enumerate(CLASSES):
        poses.clear()
        for seed in range(80):
            render_clip(label, seed, config)
        for field in ("x", "y", "angle", "radius"):
            tracks = np.stack([getattr(pose, field) for pose in poses])
            tracks = np.sort(tracks % (2 * np.pi) if field == "angle" else tracks, axis=0)
            last_among_first = np.searchsorted(tracks[:, 0], tracks[:, -1]) / len(tracks)
            assert np.abs(last_among_first - np.linspace(0, 1, len(tracks))).max() < 0.1, (name, field)


def test_pixels_move_the_way_the_label_says(clips: tuple[Array, Array]) -> None:
    frames, labels = clips
    flow = _measure_flow(frames)[:, :2]
    for name, axis, sign in (("left", 0, -1), ("right", 0, 1), ("up", 1, -1), ("down", 1, 1)):
        chosen = flow[labels == CLASSES.index(name)]
        assert (sign * chosen[:, axis] > 0.1).mean() > 0.9, name
        assert abs(chosen[:, 1 - axis].mean()) < 0.1, name


def test_sprites_turn_grow_and_circle_the_way_the_label_says(monkeypatch: pytest.MonkeyPatch) -> None:
    config = SyntheticConfig(camera_shake=0, distractors=(0, 0))
    poses: list[Poses] = []
    monkeypatch.setattr("data.generated.sprites.paint_sprite", lambda frames, look, pose: poses.append(pose))

    def record(name: str) -> list[Poses]:
        poses.clear()
        render_clip(CLASSES.index(name), 3, config)
        assert config.sprites[0] <= len(poses) <= config.sprites[1]
        return list(poses)

    for name, sign in (("spin_right", 1), ("spin_left", -1)):
        assert all((sign * np.diff(pose.angle) > 0.1).all() for pose in record(name))
    for name, sign in (("grow", 1), ("shrink", -1)):
        steps = np.stack([sign * np.diff(pose.radius) for pose in record(name)])
        seams = np.stack([np.minimum(pose.opacity[1:], pose.opacity[:-1]) < 1 for pose in poses])
        wraps = np.log1p(config.zoom[1]) / np.log(config.radius[1] / config.radius[0])  # of all steps, at most
        assert (steps > 0).mean() > 1 - 1.5 * wraps
        assert seams[steps < 0].all()  # what starts the size loop again is fading
    for name, sign in (("orbit_right", 1), ("orbit_left", -1)):
        x, y = (np.median([np.diff(getattr(pose, axis)) for pose in record(name)], axis=0) for axis in "xy")
        assert (sign * (x[:-1] * y[1:] - y[:-1] * x[1:]) > 0).all()  # clockwise on the screen, as y points down


def test_a_positive_angle_turns_clockwise() -> None:
    halves = Look(shape=0, texture=5, frequency=4, phases=(0, 0), bright=(1, 1, 1), deep=(0, 0, 0))
    middle, radius, angle = np.full((3, 4), [[15.5], [10], [0]], np.float32)
    angle += np.arange(4, dtype=np.float32) * np.float32(np.pi / 2)
    frames = np.zeros((4, 32, 32), np.uint64)
    paint_sprite(frames, halves, Poses(middle, middle, radius, angle, np.ones(4, np.float32)))
    grey = unpack_pixels(frames).mean(axis=-1)
    sides = grey[:, 16, 22], grey[:, 22, 16], grey[:, 16, 9], grey[:, 9, 16]
    np.testing.assert_array_equal(np.argmax(sides, axis=0), [0, 1, 2, 3])  # right, bottom, left, top


def test_videos_are_balanced_and_decode_to_what_was_rendered(tmp_path: Path) -> None:
    write_videos(tmp_path, 24, 5, SMALL)
    assert {name: len(list((tmp_path / name).iterdir())) for name in CLASSES} == dict.fromkeys(CLASSES, 2)
    path = tmp_path / "left" / "000012.mp4"
    with av.open(str(path)) as container:
        assert container.streams.video[0].average_rate == SMALL.fps
        decoded = np.stack([picture.to_ndarray(format="rgb24") for picture in container.decode(video=0)])
    seed = int(np.random.SeedSequence([5, 12]).generate_state(1, np.uint64)[0])
    rendered = render_clip(0, seed, SMALL)
    assert decoded.shape == rendered.shape
    grey_error = decoded.mean(axis=-1) - rendered.mean(axis=-1)
    assert np.sqrt((grey_error**2).mean()) < 10  # of 255, at the default quality


def test_videos_have_the_same_bytes_whatever_the_processes(tmp_path: Path) -> None:
    write_videos(tmp_path / "one", 18, 5, SMALL)
    write_videos(tmp_path / "two", 18, 5, SMALL, processes=2)
    assert len(_read_all(tmp_path / "one")) == 18
    assert _read_all(tmp_path / "one") == _read_all(tmp_path / "two")
    write_videos(tmp_path / "other", 18, 6, SMALL)
    assert not set(_read_all(tmp_path / "one").values()) & set(_read_all(tmp_path / "other").values())


def test_encoding_again_gives_the_same_bytes_on_disk_and_in_memory(tmp_path: Path) -> None:
    for seed in range(10):
        frames = render_clip(seed, seed, SyntheticConfig())
        encode_clip(frames, tmp_path / "clip.mp4", 8, 20)
        for _ in range(5):
            buffer = io.BytesIO()
            encode_clip(frames, buffer, 8, 20)
            assert buffer.getvalue() == (tmp_path / "clip.mp4").read_bytes()


def test_an_interrupted_folder_is_continued_and_can_grow(tmp_path: Path) -> None:
    write_videos(tmp_path, 13, 5, SMALL)
    wanted = _read_all(tmp_path)
    kept, lost = tmp_path / "left" / "000000.mp4", tmp_path / "right" / "000001.mp4"
    stamp = kept.stat().st_mtime_ns
    lost.unlink()
    calls: list[tuple[int, int]] = []
    write_videos(tmp_path, 14, 5, SMALL, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(13, 14), (14, 14)]
    assert kept.stat().st_mtime_ns == stamp
    assert {path: content for path, content in _read_all(tmp_path).items() if path != "right/000013.mp4"} == wanted
    assert not list(tmp_path.rglob("*.part"))


def test_a_folder_made_from_something_else_is_refused(tmp_path: Path) -> None:
    write_videos(tmp_path, 3, 5, SMALL)
    with pytest.raises(ValueError, match="was made with"):
        write_videos(tmp_path, 3, 6, SMALL)
    with pytest.raises(ValueError, match="was made with"):
        write_videos(tmp_path, 3, 5, SyntheticConfig(size=32, frames=9))
    with pytest.raises(ValueError, match="1 clips beyond the 2"):
        write_videos(tmp_path, 2, 5, SMALL)
    with pytest.raises(ValueError, match="clips >= 1"):
        write_videos(tmp_path, 0, 5, SMALL)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("size", 31),
        ("size", 33),
        ("frames", 1),
        ("fps", 0),
        ("crf", 52),
        ("sprites", (0, 3)),
        ("distractors", (2, 1)),
        ("radius", (5.0, 5.0)),
        ("speed", (0.0, 1.0)),
        ("spin", (9.0, 8.0)),
        ("camera_shake", -0.1),
    ],
)
def test_a_bad_config_names_its_field(field: str, value: object) -> None:
    values: dict[str, Any] = {field: value}
    with pytest.raises(ValueError, match=rf"synthetic\.{field}"):
        SyntheticConfig(**values)


def test_an_unknown_label_is_refused() -> None:
    with pytest.raises(ValueError, match="label must be from 0 to 11, got 12"):
        render_clip(12, 0, SMALL)


def _read_all(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.glob("*/*.mp4"))}


def _measure_flow(frames: Array) -> Array:
    """Whole-picture velocity along x and y by least squares on brightness, then the same after time-differencing."""
    grey = frames.mean(axis=-1)
    along_x, along_y = np.gradient(grey, axis=3)[:, :-1], np.gradient(grey, axis=2)[:, :-1]
    change = np.diff(grey, axis=1)
    velocity = np.stack(
        [-(slope * change).mean(axis=(2, 3)) / (slope**2).mean(axis=(2, 3)) for slope in (along_x, along_y)], axis=1
    )
    turning = velocity[:, 0, :-1] * velocity[:, 1, 1:] - velocity[:, 1, :-1] * velocity[:, 0, 1:]
    energy = (change**2).mean(axis=(1, 2, 3)) / (along_x**2).mean(axis=(1, 2, 3))
    return np.column_stack([velocity.mean(axis=2), velocity.std(axis=2), turning.mean(axis=1), energy])


def _classify(features: Array, labels: Array) -> float:
    """Accuracy of nearest class mean on standardised features, learned on the first two thirds."""
    cut = len(features) * 2 // 3
    features = (features - features[:cut].mean(axis=0)) / features[:cut].std(axis=0)
    means = np.stack([features[:cut][labels[:cut] == label].mean(axis=0) for label in range(len(CLASSES))])
    nearest = ((features[cut:, None] - means) ** 2).sum(axis=-1).argmin(axis=1)
    return float((nearest == labels[cut:]).mean())
