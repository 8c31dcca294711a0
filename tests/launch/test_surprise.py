"""Surprise: scores, layouts of folders, and that nothing but the hidden part is predicted."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.generated.kinds import find_kind
from data.generated.twins import TwinsConfig
from data.generated.videos import encode_clip, write_kind
from launch.__main__ import main
from launch.seeing.energies import all_measures, context_steps, cut_windows, frame_scores, model_energy, pixel_energy
from launch.seeing.imagination import Imagination, imagination_of
from launch.seeing.pairs import read_frames, read_groups
from launch.seeing.scores import Surprises, auroc, choose_context, group_hits, pair_hits, score, split_groups
from launch.seeing.surprise import SurpriseConfig, surprise
from launch.seeing.watch import watch_video
from vjepa.config import JepaConfig
from vjepa.encoder import EncoderConfig
from vjepa.jepa import JEPA
from vjepa.masks import MaskConfig
from vjepa.predictor import PredictorConfig

ENCODER = EncoderConfig(size="custom", width=24, depth=1, heads=2, patch=8, tubelet=2, frames=8, crop=32)


@pytest.fixture(scope="module")
def imagination() -> Imagination:
    predictor = PredictorConfig(width=24, depth=1, heads=2)
    masks = {"future": MaskConfig(kind="future")}
    return imagination_of(JEPA(JepaConfig(encoder=ENCODER, predictor=predictor, masks=masks, steps=10)), "a test")


def make_frames(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 32, 32, 3), generator=generator, dtype=torch.uint8)


def test_accuracy_counts_a_tie_as_half() -> None:
    scores = np.array([[[1.0, 2.0], [3.0, 2.0]], [[1.0, 1.0], [0.0, 5.0]]])
    np.testing.assert_array_equal(pair_hits(scores), [[1, 0], [0.5, 1]])
    np.testing.assert_array_equal(group_hits(scores), [0.5, 1])


def test_auroc_equals_counting_every_comparison() -> None:
    random = np.random.default_rng(0)
    possible, impossible = random.integers(0, 6, 20).astype(float), random.integers(1, 7, 15).astype(float)
    counted = np.mean([(b > a) + 0.5 * (b == a) for a in possible for b in impossible])
    assert auroc(possible, impossible) == pytest.approx(counted)


def test_the_context_length_is_chosen_without_the_tested_groups() -> None:
    random = np.random.default_rng(1)
    scores = random.normal(size=(10, 2, 2, 3))
    scores[:4, :, 1, 2] += 100  # the validation groups say: the third
    before = score(Surprises({"mean": scores, "max": scores}), range(4), range(4, 10))
    scores[4:, :, 1, 0] += 100  # on the tested groups the first would be perfect
    after = score(Surprises({"mean": scores, "max": scores}), range(4), range(4, 10))
    assert before["context_mean"] == after["context_mean"] == choose_context(scores[:4]) == 2
    assert before["pairs_mean"] == after["pairs_mean"]


def test_both_halves_of_the_split_have_every_property() -> None:
    properties = ["a"] * 10 + ["b"] * 10
    validation, test = split_groups(properties, 0.3, 0)
    assert sorted(validation + test) == list(range(20))
    assert [sum(properties[index] == name for index in validation) for name in "ab"] == [3, 3]
    with pytest.raises(ValueError, match="both are needed"):
        split_groups(["a"], 0.3, 0)


def test_energy_is_of_hidden_steps_alone_and_sees_no_hidden_pixel(imagination: Imagination) -> None:
    windows = make_frames(16).view(2, 8, 32, 32, 3)
    energy = model_energy(imagination, [1, 3])(windows)
    assert energy.shape == (2, 2, 4)
    assert energy.isnan().tolist()[0][0] == [True, False, False, False]
    assert energy.isnan().tolist()[1][0] == [True, True, True, False]
    changed = windows.clone()
    changed[:, 6:] = 0
    mask = imagination.draw("future", 2, ENCODER.grid)
    video, other = (clips.permute(0, 4, 1, 2, 3).float() for clips in (windows, changed))
    torch.testing.assert_close(imagination.predict(video, mask, "future"), imagination.predict(other, mask, "future"))


def test_a_moving_square_is_extrapolated_and_a_still_one_copied(imagination: Imagination) -> None:
    ramp = torch.arange(8, dtype=torch.uint8)[:, None, None, None].expand(8, 32, 32, 3) * 10
    still = torch.full_like(ramp, 90)
    moving = pixel_energy(imagination, [2], is_moving=True)(torch.stack([ramp, still]))
    copied = pixel_energy(imagination, [2], is_moving=False)(torch.stack([ramp, still]))
    assert moving[..., 2:].abs().max() < 1e-6
    assert copied[0, 1, 2:].abs().max() < 1e-6
    assert copied[0, 0, 2:].min() > 0.03


def test_motion_energy_is_the_mean_difference_of_frames(imagination: Imagination) -> None:
    windows = make_frames(8)[None]
    found = frame_scores(imagination, [1])["motion energy"](windows)
    expected = np.abs(np.diff(windows[0].numpy().astype(float), axis=0)).mean() / 255
    assert found[0, 0, 0].item() == pytest.approx(expected, rel=1e-5)


def test_a_video_shorter_than_a_window_is_refused_not_padded() -> None:
    assert len(cut_windows(make_frames(12), 8, 2, "a.mp4")) == 3
    with pytest.raises(ValueError, match=r"a\.mp4: 7 frames .* a window needs 8"):
        cut_windows(make_frames(7), 8, 2, "a.mp4")


def test_contexts_must_fit_the_grid(imagination: Imagination) -> None:
    assert context_steps(imagination, []) == [1, 2, 3]
    assert context_steps(imagination, [6, 2]) == [1, 3]
    with pytest.raises(ValueError, match=r"multiples of the tubelet \(2 frames\) below 8, got 3"):
        context_steps(imagination, [3])


def test_twins_are_scored_beside_every_baseline(imagination: Imagination, tmp_path: Path) -> None:
    write_kind(
        find_kind("twins"), TwinsConfig(size=32, frames=8, events=("vanish", "turn")), tmp_path / "videos", 24, 0
    )
    outcome = surprise(imagination, SurpriseConfig(pairs=str(tmp_path), batch=8))
    assert list(outcome.methods) == list(all_measures(imagination, [1], None, 0))
    model = outcome.methods["model"]
    assert list(model) == ["all", "vanish", "turn"]
    assert model["all"]["groups"] + outcome.validation == 6
    assert len(outcome.curves["possible"]) == 4
    # Twins balance every frame, and AC + BD has the same motion as AD + BC: at most compression differs.
    shown = outcome.methods["single frame (contrast)"]["all"]["pairs_mean"][0]
    assert 0.1 < shown < 0.9


def test_intphys_folders_are_paired_by_the_first_frame_that_differs(tmp_path: Path) -> None:
    movies = {"1": (True, 1, 5), "2": (True, 2, 6), "3": (False, 2, 7), "4": (False, 1, 8)}
    for name, (is_possible, start, end) in movies.items():
        folder = tmp_path / "O1" / "01" / name
        (folder / "scene").mkdir(parents=True)
        (folder / "status.json").write_text(json.dumps({"header": {"is_possible": is_possible}}))
        for number in range(4):
            picture = make_frames(1, start if number < 2 else end)[0].numpy()
            Image.fromarray(picture).save(folder / "scene" / f"scene_{number:03d}.png")
    (group,) = read_groups(tmp_path)
    assert group.property == "O1"
    assert [path.parent.name for path in (*group.possible, *group.impossible)] == ["1", "2", "4", "3"]
    torch.testing.assert_close(read_frames(group.possible[0], 32, 2)[0], make_frames(1, 1)[0])
    assert len(read_frames(group.possible[0], 32, 2)) == 2


def test_grasp_folders_are_paired_by_name(tmp_path: Path) -> None:
    for side in ("plausible", "implausible"):
        (tmp_path / "Gravity" / side).mkdir(parents=True)
        for name in ("b", "a"):
            encode_clip(make_frames(3).numpy(), tmp_path / "Gravity" / side / f"{name}.mp4", 8, 20)
    groups = read_groups(tmp_path)
    assert [(group.property, group.possible[0].stem, group.impossible[0].stem) for group in groups] == [
        ("Gravity", "a", "a"),
        ("Gravity", "b", "b"),
    ]


def test_tables_are_read_and_a_bad_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "solidity.csv").write_text("video,group,possible\nx/1.mp4,t1,1\nx/2.mp4,t1,0\n")
    (group,) = read_groups(tmp_path)
    assert (group.property, group.possible, group.impossible) == (
        "solidity", (tmp_path / "x/1.mp4",), (tmp_path / "x/2.mp4",),
    )  # fmt: skip
    (tmp_path / "solidity.csv").write_text("video,group,possible\nx/1.mp4,t1,maybe\n")
    with pytest.raises(ValueError, match="line 2"):
        read_groups(tmp_path)


def test_a_folder_of_another_shape_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no groups"):
        read_groups(tmp_path)
    with pytest.raises(ValueError, match="layout must be auto, twins"):
        read_groups(tmp_path, "zip")


def test_energy_over_time_covers_the_frames_that_some_window_hides(imagination: Imagination) -> None:
    watched = watch_video(imagination, make_frames(14), 2, 1, 4, "a.mp4")
    assert np.isnan(watched.energy[:4]).all()
    assert not np.isnan(watched.energy[4:]).any()
    only = watch_video(imagination, make_frames(8), 2, 1, 4, "a.mp4").energy
    assert only[4] == only[5] != only[6]


def test_the_commands_write_results_and_pictures(quick: list[str], tmp_path: Path) -> None:
    words = [*quick, "run.steps=1", "data.frames=8", "encoder.tubelet=4"]
    config = tmp_path / "empty.yaml"
    config.write_text("{}\n")
    assert main(["train", str(config), *words]) == 0
    run = tmp_path / "run"
    write_kind(find_kind("twins"), TwinsConfig(size=32, frames=8, events=("stop",)), tmp_path / "videos", 12, 0)
    assert main(["surprise", str(run), f"pairs={tmp_path / 'videos'}"]) == 0
    found = json.loads((run / "surprise" / "results.json").read_text())
    assert found["contexts"] == [4]
    assert "model" in found["methods"]
    assert "overflow-x" in (run / "surprise" / "report.html").read_text()
    video = tmp_path / "videos" / "possible" / "000000.mp4"
    assert main(["surprise", "watch", str(run), str(video)]) == 0
    assert {path.suffix for path in (run / "surprise" / "pictures").glob("000000.*")} == {".png", ".gif", ".mp4"}
    assert main(["surprise", "watch", str(run)]) == 2
