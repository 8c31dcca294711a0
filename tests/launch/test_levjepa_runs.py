"""LeVJEPA from the command line: trained, resumed and exported; its recipe files beside the paper and public code."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from launch.__main__ import main
from launch.config import load_config
from launch.training.checkpoints import list_checkpoints, load_module
from launch.training.config import TrainConfig
from vjepa.encoder_causal import CausalEncoder
from vjepa.formats.loading import load_encoder
from vjepa.optim import lr_schedule, momentum_schedule, weight_decay_schedule

FOLDER = Path(__file__).parents[2] / "configs" / "pretrain"
TINY = str(FOLDER / "tiny_cpu.yaml")
OWN = [
    "objective=levjepa", "encoder.kind=causal", "encoder.tubelet=1", "encoder.positions=rotary",
    "encoder.rotary_order=tiled", "levjepa={keep: 0.5, hidden: 16, projection: 8, count_local: 2, local_crop: 16}",
    "regulariser={sigreg: 0.02, slices: 16}", "data.local={count: 2, crop: 16}", "teacher.momentum=0.9",
]  # fmt: skip


def test_views_train_resume_exactly_and_the_average_is_exported(
    quick: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("alone", "parts"):
        assert main(["train", TINY, *quick, *OWN, "data.workers=0", f"run.output={tmp_path / name}"]) == 0
    list_checkpoints(tmp_path / "parts")[6].unlink()
    assert main(["train", TINY, *quick, *OWN, "data.workers=0", f"run.output={tmp_path / 'parts'}"]) == 0
    model, other = load_module(tmp_path / "parts"), load_module(tmp_path / "alone")
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())
    assert main(["export", str(tmp_path / "parts"), str(tmp_path / "out")]) == 0
    found = load_encoder(tmp_path / "out")
    assert isinstance(found, CausalEncoder)
    average = model.trained_encoder.state_dict()
    assert all(torch.equal(value, average[name]) for name, value in found.state_dict().items())
    assert not torch.equal(average["cls_token"], model.context_encoder.state_dict()["cls_token"])
    assert main(["export", str(tmp_path / "parts"), str(tmp_path / "meta"), "--format", "meta"]) == 2
    assert "no encoder.kind=causal" in capsys.readouterr().err


def test_local_crops_must_fit_the_patches(quick: list[str]) -> None:
    with pytest.raises(ValueError, match=r"data.local.crop must be a multiple of encoder.patch \(8 pixels\), got 20"):
        load_config(TrainConfig, TINY, [*quick, *OWN, "data.local.crop=20"])


TABLE = {  # encoder, steps, warm-up
    "levjepa_vitb16": ((768, 12, 12, 3072), 10_000, 1_200),
    "levjepa_vitl16": ((1024, 24, 16, 4096), 58_594, 12_000),
}


@pytest.mark.parametrize("name", TABLE)
def test_a_recipe_resolves_to_the_published_numbers(name: str) -> None:
    shape, steps, warmup = TABLE[name]
    config = load_config(TrainConfig, FOLDER / f"{name}.yaml", [])
    encoder, data, local, optim, run = config.encoder, config.data, config.data.local, config.optim, config.run
    width, blocks, heads, ratio = encoder.shape
    assert (width, blocks, heads, round(width * ratio)) == shape
    assert (encoder.kind, encoder.patch, encoder.tubelet) == ("causal", 16, 1)
    assert (encoder.positions, encoder.rotary_order, encoder.init) == ("rotary", "tiled", "scaled")
    assert (data.frames, data.fps, data.crop, data.scale, data.flip) == (16, 7.5, 224, (0.8, 1.0), 0.0)
    assert local is not None
    assert (local.count, local.crop, local.scale, local.flip) == (10, 96, (0.02, 0.4), 0.5)
    assert (local.jitter, local.brightness, local.contrast, local.saturation, local.hue) == (0.8, 0.4, 0.4, 0.2, 0.1)
    assert local.grey == 0.2
    assert data.aspect == pytest.approx((3 / 4, 4 / 3))
    assert local.aspect == pytest.approx((3 / 4, 4 / 3))
    options = config.jepa.objective_options
    assert (config.objective, options.keep, options.hidden, options.projection) == ("levjepa", 0.05, 2048, 256)
    assert (options.count_local, options.local_crop) == (local.count, local.crop)
    terms = config.regulariser
    assert (terms.sigreg, terms.slices, terms.knots, terms.over_ranks) == (0.02, 1024, 17, True)
    assert (run.steps, run.batch, run.batch_per_device) == (steps, 3072, 96)
    assert (optim.betas, optim.clip, optim.stretch) == ((0.9, 0.95), 0.0, 1.0)
    rate, decay = lr_schedule(config.jepa.optim, steps), weight_decay_schedule(config.jepa.optim, steps)
    assert (rate(0), rate(warmup), rate(steps - 1)) == pytest.approx((1e-4, 4e-4, 4e-4))
    assert (decay(0), decay(steps - 1)) == pytest.approx((0.04, 0.04))
    momentum = momentum_schedule(*config.teacher.momenta(steps), steps, optim.stretch)
    assert (momentum(0), momentum(steps)) == (0.9999, 0.9999)


def test_the_sizes_differ_in_nothing_else() -> None:
    base, large = (load_config(TrainConfig, FOLDER / f"{name}.yaml", []) for name in TABLE)
    optim = replace(large.optim, warmup_steps=1_200)
    assert replace(large, encoder=base.encoder, run=base.run, optim=optim) == base
