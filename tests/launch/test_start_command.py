"""`vjepa start`: from a folder of videos to an encoder and a report, overwriting nothing."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import vjepa
from data.generated.sprites import SyntheticConfig, write_videos
from launch.__main__ import main
from launch.config import load_config
from launch.reports.look import draw_map, find_neighbours, mean_features, project
from launch.studies.start import Start, claim_output
from launch.studies.survey import GPU, SMALL, Survey, choose, look_at
from launch.training.config import TrainConfig

TINY = (
    "encoder.size=custom", "encoder.width=24", "encoder.depth=1", "encoder.heads=2", "encoder.patch=8",
    "predictor.width=12", "predictor.depth=1", "predictor.heads=2", "data.frames=8", "data.crop=32", "data.workers=0",
    "run.precision=fp32", "run.batch=8", "health.pictures_every=null", "health.matrix_tflops=1",
)  # fmt: skip
MANY = Survey(5000, {"a": 2500, "b": 2500}, 240, 30, 300, 10, ())


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 videos of 8 frames at 32 pixels, two of each of 12 classes."""
    folder = tmp_path_factory.mktemp("own") / "videos"
    write_videos(folder, 24, 0, SyntheticConfig(size=32, frames=8))
    return folder


@pytest.fixture(autouse=True)
def _few_steps_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launch.training.budget.MEASURED", 8)
    monkeypatch.setattr("launch.training.budget.WARMUP", 2)


@pytest.fixture
def flat(videos: Path, tmp_path: Path) -> Path:
    """The same without labels."""
    folder = tmp_path / "flat"
    folder.mkdir()
    for number, file in enumerate(sorted(videos.rglob("*.mp4"))):
        (folder / f"{number}.mp4").write_bytes(file.read_bytes())
    return folder


def test_survey_counts_classes_and_measures_videos(videos: Path) -> None:
    survey = look_at(str(videos))
    assert (survey.videos, len(survey.classes), survey.side, survey.frames) == (24, 12, 32, 8)
    assert survey.labelled
    assert not replace(survey, classes={"one": 24}).labelled
    assert not replace(survey, classes={"one": 23, "two": 1}).labelled, "no video left to test on"


def test_folder_of_unreadable_videos_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"not a video")
    with pytest.raises(ValueError, match=r"none of the 1 videos looked at can be read; broken.mp4"):
        look_at(str(tmp_path))


def test_choice_follows_device_and_number_of_videos() -> None:
    assert choose(MANY, gpu_gib=40).config == GPU
    assert choose(MANY, gpu_gib=0).config == SMALL
    assert choose(replace(MANY, videos=100), gpu_gib=40).config == SMALL
    assert "no GPU" in choose(MANY, gpu_gib=0).reasons[0]


def test_choice_fits_the_batch_and_the_clip_to_the_videos() -> None:
    few = choose(replace(MANY, videos=10, seconds=1.5, frames=45), gpu_gib=0)
    assert "run.batch=8" in few.overrides
    frames = load_config(TrainConfig, SMALL, []).data.frames
    short = choose(replace(MANY, frames=frames, seconds=frames / 60), gpu_gib=0)
    config = load_config(TrainConfig, SMALL, list(short.overrides))
    assert config.data.stride * (config.data.frames - 1) < frames
    assert config.data.fps is None
    assert len(short.reasons) > len(choose(MANY, gpu_gib=0).reasons)


def test_few_long_videos_are_cut_into_pieces() -> None:
    few = choose(replace(MANY, videos=4, seconds=30.0, frames=900), gpu_gib=0)
    assert few.split == 1.0
    assert "run.batch" not in " ".join(few.overrides), "120 pieces fill a batch"
    assert any("pieces of 1 s" in reason for reason in few.reasons)
    assert choose(replace(MANY, videos=4, seconds=1.5, frames=45), gpu_gib=0).split == 0
    assert choose(MANY, gpu_gib=0).split == 0


def test_large_videos_are_scaled_down_and_small_ones_kept() -> None:
    crop = load_config(TrainConfig, SMALL, []).data.crop
    assert choose(replace(MANY, side=1080), gpu_gib=0).short_side == 2 * crop
    assert choose(replace(MANY, side=crop), gpu_gib=0).short_side == 0


def test_dry_run_writes_nothing(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["start", str(videos), "--output", str(tmp_path / "out"), "--dry-run"]) == 0
    assert f"vjepa pack {videos} {tmp_path / 'out' / 'shards'} --val-fraction 0.2" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_start_without_labels_writes_encoder_and_report_and_then_overwrites_nothing(
    flat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    words = ["start", str(flat), "--output", str(output), "--minutes", "0.01", *TINY]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "No probe" in said
    assert f'vjepa.load_encoder("{output / "encoder"}")' in said
    assert "collapse" not in said.split("Pretraining for")[1].split("steps in")[0], "the calibration is silent"
    page = (output / "report.html").read_text()
    assert "Nearest neighbours" in page
    assert page.count("data:image/webp") >= 5 * 6, "neighbours move"
    assert "http" not in page
    assert vjepa.load_encoder(output / "encoder").config.width == 24
    before = (output / "start.json").read_bytes()
    assert main(words) == 2
    assert f"nothing is overwritten; give --output {output}-2" in capsys.readouterr().err
    assert (output / "start.json").read_bytes() == before


def test_interrupted_start_continues(flat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    output.mkdir()
    asked = {"source": str(flat.resolve()), "minutes": 0.01, "seed": 0, "overrides": list(TINY)}
    (output / "start.json").write_text(json.dumps(asked))
    survey = look_at(str(flat))
    claim_output(Start(str(flat), output, 0.01, 0, survey, choose(survey, gpu_gib=0), TINY))
    assert "continues there" in capsys.readouterr().out


def test_folder_of_something_else_is_left_alone(flat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("important")
    assert main(["start", str(flat), "--output", str(tmp_path / "out"), *TINY]) == 2
    assert "holds something else" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]


@pytest.mark.slow
def test_start_with_labels_probes(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["start", str(videos), "--output", str(tmp_path / "out"), "--minutes", "0.01", *TINY]) == 0
    said = capsys.readouterr().out
    assert "random encoder" in said
    assert "vjepa probe own encoder=" in said
    card = (tmp_path / "out" / "encoder" / "README.md").read_text()
    assert "## Probes on frozen features" in card
    assert "](features.png)" in card
    assert "Results" in (tmp_path / "out" / "report.html").read_text()


def test_nearest_neighbour_of_a_clip_is_its_own_copy() -> None:
    config = vjepa.EncoderConfig(size="custom", width=24, depth=1, heads=2, patch=8, frames=4, crop=32)
    clips = torch.randint(0, 255, (6, 4, 32, 32, 3), dtype=torch.uint8)
    clips[4] = clips[0]
    index = find_neighbours(mean_features(clips, vjepa.Encoder(config).eval()), rows=6, nearest=2)
    assert index[0, :2].tolist() == [0, 4]
    assert index[4, :2].tolist() == [4, 0]


def test_map_has_a_dot_for_every_clip_printed_axes_and_keeps_groups_together() -> None:
    torch.manual_seed(0)
    means = torch.cat([torch.randn(1, 8).expand(10, 8) * 3 + torch.randn(10, 8) * 0.1 for _ in range(2)])
    names = ["a"] * 10 + ["b"] * 9 + [""]
    for count, expected in ((20, "t-SNE"), (6, "PCA")):
        points, method = project(torch.nn.functional.normalize(means[-count:], dim=1))
        assert (method, points.shape) == (expected, (count, 2))
        (axis,) = draw_map(points, names[-count:], method).axes
        assert (axis.get_xlabel(), axis.get_ylabel()) == (f"{method} 1", f"{method} 2")
        assert sum(len(line.get_xdata()) for line in axis.lines) == count
    centres = [
        project(torch.nn.functional.normalize(means, dim=1))[0][part].mean(0) for part in (slice(10), slice(10, 20))
    ]
    assert abs(centres[0] - centres[1]).max() > 1


def test_look_writes_one_page_about_an_encoder_and_a_set(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = vjepa.EncoderConfig(size="custom", width=24, depth=1, heads=2, patch=8, frames=4, crop=32)
    vjepa.save_encoder(vjepa.Encoder(config), tmp_path / "encoder")
    words = ["look", str(tmp_path / "encoder"), str(shards), "--clips", "12", "--output", str(tmp_path / "look.html")]
    assert main([*words, "data.workers=0"]) == 0
    assert "12 clips: " in capsys.readouterr().out
    page = (tmp_path / "look.html").read_text()
    assert "t-SNE of their mean features" in page
    assert page.count("data:image/png") == 1
