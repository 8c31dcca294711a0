"""I-JEPA from the command line: images alone, trained, resumed, exported; its recipe files beside the paper."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.packing.pack import PackConfig, pack
from launch.__main__ import main
from launch.config import load_config
from launch.training.checkpoints import list_checkpoints, load_module
from launch.training.config import TrainConfig
from vjepa.formats.loading import load_pretrained
from vjepa.optim import lr_schedule, momentum_schedule, weight_decay_schedule

FOLDER = Path(__file__).parents[2] / "configs" / "pretrain"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen packed PNG files of two classes."""
    folder = tmp_path_factory.mktemp("images")
    for number in range(16):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 48, 3), dtype=np.uint8)
        (folder / "files" / str(number % 2)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / "files" / str(number % 2) / f"{number}.png")
    pack(str(folder / "files"), str(folder / "shards"), PackConfig())
    return folder / "shards"


def losses(folder: Path) -> list[str]:
    with (folder / "csv" / "metrics.csv").open(newline="") as file:
        return [row["loss"] for row in csv.DictReader(file) if row.get("loss")]


def test_images_alone_train_resume_exactly_and_are_exported_for_the_public_code(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        str(FOLDER.parent / "bench" / "digits_cpu.yaml"), f"data.path={images}", "encoder.width=24", "encoder.depth=1",
        "encoder.heads=2", "predictor.width=12", "predictor.depth=1", "predictor.heads=2", "data.workers=0",
        "run.batch=8", "run.steps=4", "run.checkpoint_every=2", "run.log_every=1", "health.matrix_tflops=1",
        "run.precision=fp32", "health.every=2", "health.pictures_every=2", "run.keep=2",
    ]  # fmt: skip
    for name in ("alone", "parts"):
        assert main(["train", *words, f"run.output={tmp_path / name}"]) == 0
    list_checkpoints(tmp_path / "parts")[4].unlink()
    assert main(["train", *words, f"run.output={tmp_path / 'parts'}"]) == 0
    assert len(losses(tmp_path / "alone")) == 4
    assert losses(tmp_path / "parts")[-2:] == losses(tmp_path / "alone")[-2:]
    mine, other = load_module(tmp_path / "parts"), load_module(tmp_path / "alone")
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in mine.state_dict().items())
    assert main(["export", str(tmp_path / "alone"), str(tmp_path / "meta"), "--format", "meta"]) == 0
    found = load_pretrained(tmp_path / "meta" / "checkpoint.pth.tar", "target_encoder")
    for name, value in mine.trained_encoder.state_dict().items():
        assert torch.equal(found.encoder.state_dict()[name], value)
    content = torch.load(tmp_path / "meta" / "checkpoint.pth.tar", weights_only=True)
    assert content["encoder"]["module.patch_embed.proj.weight"].shape == (24, 3, 4, 4)
    assert {"opt", "scaler", "epoch", "predictor", "target_encoder"} <= content.keys()
    assert main(["export", str(tmp_path / "alone"), str(tmp_path / "hf"), "--format", "transformers"]) == 2
    assert "sin-cos positions" in capsys.readouterr().err


# Epochs of ImageNet-1k: 1,281,167 images, 80,073 for each of 16 devices, 625 whole batches of 128.
TABLE = {  # encoder, patch, crop; predictor's depth; epochs, warm-up in epochs, initial rate, images per device
    "ijepa_vitb16": ((768, 12, 12, 3072), 16, 224, 6, 600, 15, 1e-4, 128),
    "ijepa_vitl16": ((1024, 24, 16, 4096), 16, 224, 12, 600, 15, 1e-4, 128),
    "ijepa_vith14": ((1280, 32, 16, 5120), 14, 224, 12, 300, 40, 2e-4, 128),
    "ijepa_vith16_448": ((1280, 32, 16, 5120), 16, 448, 12, 300, 40, 2e-4, 16),
}


@pytest.mark.parametrize("name", TABLE)
def test_a_recipe_of_images_resolves_to_the_published_numbers(name: str) -> None:
    shape, patch, crop, depth, epochs, warmup, begin, batch = TABLE[name]
    config = load_config(TrainConfig, FOLDER / f"{name}.yaml", [])
    encoder, predictor, data, optim, run = config.encoder, config.predictor, config.data, config.optim, config.run
    width, blocks, heads, ratio = encoder.shape
    assert (width, blocks, heads, round(width * ratio)) == shape
    assert (encoder.patch, encoder.tubelet, encoder.positions, encoder.init) == (patch, 1, "sincos_2d", "plain")
    assert (predictor.width, predictor.depth, predictor.heads, predictor.mask_token) == (384, depth, None, "clip")
    assert (config.objective, config.jepa.objective_options.loss) == ("ijepa", "smooth_l1")
    assert (data.frames, data.crop, data.scale, data.flip) == (1, crop, (0.3, 1.0), 0.0)
    assert data.aspect == pytest.approx((3 / 4, 4 / 3))
    ((mask,),) = [list(config.masks.values())]
    assert (mask.kind, mask.num_blocks, mask.spatial_scale, mask.drop) == ("multiblock", 4, (0.15, 0.2), "last")
    assert (1 / mask.aspect[1], 1 / mask.aspect[0]) == pytest.approx((0.75, 1.5))  # height / width
    assert mask.options == {"context_low": 0.85, "context_high": 1.0, "least": 10}
    assert (run.steps, run.batch, run.batch_per_device) == (625 * epochs, 2048, batch)
    assert (optim.warmup_steps, optim.betas, optim.eps, optim.clip) == (625 * warmup, (0.9, 0.999), 1e-8, 0.0)
    assert (optim.ahead, optim.stretch, config.regulariser.active) == (1, 1.0, False)
    steps = run.steps
    rate, decay = lr_schedule(config.jepa.optim, steps), weight_decay_schedule(config.jepa.optim, steps)
    momentum = momentum_schedule(*config.teacher.momenta(steps), steps, optim.stretch)
    assert rate(0) == pytest.approx(begin + (1e-3 - begin) / (625 * warmup))
    assert (rate(625 * warmup - 1), rate(steps - 1)) == pytest.approx((1e-3, 1e-6))
    assert (decay(0), decay(steps - 1)) == pytest.approx((0.04, 0.4), rel=1e-6)
    assert (momentum(0), momentum(steps)) == pytest.approx((0.996, 1.0))
    assert config.jepa.follows_device_batch


def test_the_sizes_differ_in_nothing_else() -> None:
    base = load_config(TrainConfig, FOLDER / "ijepa_vith14.yaml", [])
    for name in TABLE:
        other = load_config(TrainConfig, FOLDER / f"{name}.yaml", [])
        same = replace(
            other, encoder=base.encoder, data=base.data, run=base.run,
            predictor=replace(other.predictor, depth=12),
            optim=replace(other.optim, start_lr=2e-4, warmup_steps=25_000),
        )  # fmt: skip
        assert same == base, name
