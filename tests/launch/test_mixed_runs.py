"""Runs with images beside clips, and distilled ones: trained, resumed, exported."""

import csv
from pathlib import Path

import pytest
import torch
from pytorch_lightning.strategies import DDPStrategy

from launch.__main__ import main
from launch.config import load_config
from launch.training.checkpoints import list_checkpoints, load_module
from launch.training.config import TrainConfig
from launch.training.strategy import choose_strategy
from launch.training.trainer import train
from vjepa.encoder21 import ModalityEncoder
from vjepa.formats.loading import load_pretrained

CONFIG = str(Path(__file__).parents[2] / "configs" / "pretrain" / "tiny_cpu.yaml")
NEW = [
    "predictor.heads=2",
    "encoder.kind=vjepa21",
    "encoder.positions=rotary",
    "encoder.depth=4",
    "objective=dense",
    "encoder.patch=16",
]
MASKS = ["masks.ahead.kind=future", "image_masks.image={num_blocks: 1, spatial_scale: [0.3, 0.3]}"]


@pytest.fixture
def mixed(quick: list[str], shards: Path) -> list[str]:
    """Six clips and two images a step."""
    own = [word for word in quick if not word.startswith("data.path")]
    mix = f"data.mix=[{{path: {shards}}}, {{path: {shards}, images: true}}]"
    return [*own, *NEW, *MASKS, mix, "data.images={share: 0.25, crop: 48, ranks: 0.5}"]


def losses(folder: Path) -> list[tuple[str, str, str]]:
    with (folder / "csv" / "metrics.csv").open(newline="") as file:
        return [
            (row["step"], row["loss"], row["loss/images/prediction"]) for row in csv.DictReader(file) if row.get("loss")
        ]


def test_images_beside_clips_train_and_resume_exactly(mixed: list[str], tmp_path: Path) -> None:
    train(load_config(TrainConfig, CONFIG, [*mixed, f"run.output={tmp_path / 'alone'}"]))
    folder = tmp_path / "parts"
    train(load_config(TrainConfig, CONFIG, [*mixed, f"run.output={folder}"]))
    list_checkpoints(folder)[6].unlink()
    train(load_config(TrainConfig, CONFIG, [*mixed, f"run.output={folder}"]))
    assert losses(folder) == losses(tmp_path / "alone")
    assert all(value for row in losses(folder) for value in row)
    mine, theirs = load_module(folder).state_dict(), load_module(tmp_path / "alone").state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in mine.items())


def test_ddp_looks_for_unused_parameters_only_where_there_may_be_any(mixed: list[str], quick: list[str]) -> None:
    plain = [word for word in mixed if word not in NEW]
    for words, unused in ((mixed, True), (plain, True), (quick, False)):
        strategy = choose_strategy(load_config(TrainConfig, CONFIG, [*words, "run.bucket_mb=7"]), 2)
        assert isinstance(strategy, DDPStrategy)
        assert strategy._ddp_kwargs == {
            "find_unused_parameters": unused, "broadcast_buffers": False, "gradient_as_bucket_view": True,
            "bucket_cap_mb": 7,
        }  # fmt: skip
    assert choose_strategy(load_config(TrainConfig, CONFIG, mixed), 1) == "auto"


def test_a_crop_of_images_that_does_not_fit_the_patches_is_refused(mixed: list[str]) -> None:
    with pytest.raises(ValueError, match=r"data.images.crop must be a multiple of encoder.patch \(16 pixels\), got 40"):
        load_config(TrainConfig, CONFIG, [*mixed, "data.images.crop=40"])


def test_a_run_of_version_2_1_is_exported_for_the_public_code_and_read_back(
    quick: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", CONFIG, *quick, *NEW]) == 0
    run = tmp_path / "run"
    for kind in ("native", "meta"):
        assert main(["export", str(run), str(tmp_path / kind), "--format", kind]) == 0
    stored = load_pretrained(tmp_path / "meta" / "checkpoint.pt", "target_encoder")
    assert stored.predictor is not None
    assert stored.predictor.levels == 4
    model = load_module(run)
    for name, value in model.trained_encoder.state_dict().items():
        assert torch.equal(value, stored.encoder.state_dict()[name])
    assert main(["export", str(run), str(tmp_path / "hf"), "--format", "transformers"]) == 2
    assert "no encoder of kind vjepa21; export with --format native or meta" in capsys.readouterr().err


def test_a_smaller_student_is_distilled_from_a_file_and_its_average_exported(quick: list[str], tmp_path: Path) -> None:
    """As V-JEPA 2.1's ViT-B and L: the last level of a wider teacher; a run resumed after a step equals another."""
    assert main(["train", CONFIG, *quick, *NEW, "encoder.width=48", f"run.output={tmp_path / 'big'}"]) == 0
    assert main(["export", str(tmp_path / "big"), str(tmp_path / "teacher"), "--format", "meta"]) == 0
    words = [
        *quick, *NEW, "dense.levels=1", "teacher.source=distilled", "teacher.which=target_encoder",
        f"teacher.weights={tmp_path / 'teacher' / 'checkpoint.pt'}", "teacher.momentum=0.9",
    ]  # fmt: skip
    for name in ("alone", "parts"):
        assert main(["train", CONFIG, *words, f"run.output={tmp_path / name}"]) == 0
    list_checkpoints(tmp_path / "parts")[6].unlink()
    assert main(["train", CONFIG, *words, f"run.output={tmp_path / 'parts'}"]) == 0
    model, other = load_module(tmp_path / "parts"), load_module(tmp_path / "alone")
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())
    teacher = load_pretrained(tmp_path / "teacher" / "checkpoint.pt", "target_encoder").encoder.state_dict()
    kept = model.target_encoder.encoder.state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in teacher.items())
    student = model.trained_encoder
    assert isinstance(student, ModalityEncoder)
    assert student is not model.context_encoder
    assert not torch.equal(student.blocks[0].mlp.fc1.weight, model.context_encoder.blocks[0].mlp.fc1.weight)
    assert main(["export", str(tmp_path / "parts"), str(tmp_path / "student"), "--format", "meta"]) == 0
    again = load_pretrained(tmp_path / "student" / "checkpoint.pt", "target_encoder")
    assert torch.equal(again.encoder.blocks[0].mlp.fc1.weight, student.blocks[0].mlp.fc1.weight)
    assert again.predictor is not None
    assert (again.predictor.levels, again.predictor.target_width) == (1, 48)
