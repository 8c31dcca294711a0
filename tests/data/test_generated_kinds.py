"""The registry, the writer of labelled sets, and that first frames give no label away."""

import json
import math
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.generated.bodies import BodiesConfig, integrate, render_bodies
from data.generated.kinds import all_kinds, draw_level, find_kind
from data.generated.rooms import RoomsConfig
from data.generated.twins import EVENTS, TwinsConfig, render_twins
from data.generated.videos import write_set

LABELLED = [
    ("sprites", {}), ("textures", {}), ("bodies", {"scenario": "pendulum"}), ("bodies", {"scenario": "balls"}),
    ("bodies", {"scenario": "collision"}), ("bodies", {"scenario": "spring"}), ("bodies", {"scenario": "arm"}),
    ("equations", {"equation": "burgers"}), ("equations", {"equation": "kdv"}),
    ("equations", {"equation": "kuramoto"}), ("equations", {"equation": "vorticity"}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "settings"), LABELLED)
def test_first_frames_alone_are_at_chance(name: str, settings: dict[str, Any]) -> None:
    kind = find_kind(name)
    config = kind.config(size=32, frames=2, **settings)
    clips = [kind.render(config, index, 3) for index in range(240)]
    labels = np.array([clip.label for clip in clips])
    classes = len(kind.classes(config))
    pixels = np.stack([clip.frames[0] for clip in clips]).reshape(240, 8, 4, 8, 4, 3).mean(axis=(2, 4)).reshape(240, -1)
    pixels = (pixels - pixels.mean(axis=0)) / pixels.std(axis=0).clip(1e-6)
    right = 0
    for fold in range(4):  # ridge regression on one-hot labels
        test = np.arange(240) // classes % 4 == fold
        kernel = pixels @ pixels[~test].T
        weights = np.linalg.solve(kernel[~test] + 200 * np.eye((~test).sum()), np.eye(classes)[labels[~test]])
        right += int(((kernel[test] @ weights).argmax(axis=1) == labels[test]).sum())
    chance = 1 / classes
    assert abs(right / 240 - chance) < 2.6 * math.sqrt(chance * (1 - chance) / 240)  # 99 %: there are eleven kinds


def test_twins_balance_every_frame_and_every_difference() -> None:
    config = TwinsConfig(size=32, frames=10)
    for quadruplet in range(24):
        clips = [render_twins(config, 4 * quadruplet + member, 1) for member in range(4)]
        assert [clip.label for clip in clips] == [0, 0, 1, 1]
        frames = [clip.frames.astype(int) for clip in clips]
        cut = int(clips[0].values["cut"])
        assert all((clip[cut] == frames[0][cut]).all() for clip in frames)
        for measure in (lambda clip: clip, lambda clip: np.abs(np.diff(clip, axis=0)), lambda c: np.abs(c - c[cut])):  # noqa: B023
            possible, impossible = ([measure(frames[member]) for member in pair] for pair in ((0, 1), (2, 3)))
            np.testing.assert_array_equal(sum(possible), sum(impossible))
        assert (frames[0][: cut + 1] == frames[2][: cut + 1]).all()
        assert (frames[0][cut + 1 :] != frames[2][cut + 1 :]).any(), EVENTS[quadruplet % 6]


def test_cheap_baselines_cannot_tell_twins_apart() -> None:
    config = TwinsConfig(size=32, frames=10)
    clips = [render_twins(config, index, 5).frames.astype(float) for index in range(4 * 60)]
    energy = np.array([np.abs(np.diff(clip, axis=0)).mean() for clip in clips]).reshape(-1, 4)
    threshold = np.median(energy)
    right = (energy[:, 2:] > threshold).sum() + (energy[:, :2] <= threshold).sum()
    assert abs(right / energy.size - 0.5) < 1.96 * 0.5 / math.sqrt(energy.size)


def test_bodies_are_pure_and_their_levels_balanced() -> None:
    config = BodiesConfig(size=32, frames=4, scenario="arm")
    clips = [render_bodies(config, index, 2) for index in range(6)]
    assert [clip.label for clip in clips] == [0, 1, 2, 0, 1, 2]
    np.testing.assert_array_equal(clips[4].frames, render_bodies(config, 4, 2).frames)
    ratios = [clip.values["mass_ratio"] for clip in clips]
    assert max(ratios[0], ratios[3]) < min(ratios[1], ratios[4]) < max(ratios[1], ratios[4]) < min(ratios[2], ratios[5])


def test_a_frictionless_pendulum_keeps_its_energy() -> None:
    states = integrate(lambda s: (s[1], -0.3 * math.sin(s[0])), (1.8, 0.1), 16)
    energy = states[:, 1] ** 2 / 2 - 0.3 * np.cos(states[:, 0])
    np.testing.assert_allclose(energy, energy[0], atol=1e-6)


def test_levels_are_equal_parts_of_the_range() -> None:
    random = np.random.default_rng(0)
    drawn = np.array([draw_level(random, index, 3, (1.0, 8.0), logarithmic=True) for index in range(300)]).reshape(
        -1, 3
    )
    assert (drawn[:, 0] < 2).all()
    assert ((drawn[:, 1] >= 2) & (drawn[:, 1] < 4)).all()
    assert (drawn[:, 2] >= 4).all()


def test_a_set_has_equal_bytes_again_and_carries_values_and_actions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, kind = RoomsConfig(), find_kind("rooms")
    manifest = write_set(kind, config, tmp_path / "one", 9, 4)
    monkeypatch.setattr("data.generated.videos.FEWEST", 2)
    write_set(kind, config, tmp_path / "two", 9, 4, jobs=2)
    read = [(tmp_path / name / "shards" / "shard-000000.tar").read_bytes() for name in ("one", "two")]
    assert read[0] == read[1]
    with tarfile.open(tmp_path / "one" / "shards" / "shard-000000.tar") as shard:
        sidecars = {n[:-5]: json.load(shard.extractfile(n)) for n in shard.getnames() if n.endswith(".json")}  # type: ignore[arg-type]
    assert manifest.samples == len(sidecars) == 9
    table = dict(line.split(",") for line in (tmp_path / "one" / "values" / "door.csv").read_text().splitlines()[1:])
    for key, sidecar in sidecars.items():
        assert np.shape(sidecar["actions"]) == (16, 2)
        assert np.shape(sidecar["states"]) == (17, 2)
        assert float(table[key]) == sidecar["values"]["door"]


def test_an_unknown_kind_names_those_that_exist() -> None:
    with pytest.raises(ValueError, match="bodies, equations, forks, rooms, sprites, textures, twins"):
        find_kind("sprits")
    assert all(kind.summary.endswith(".") for kind in all_kinds().values())
