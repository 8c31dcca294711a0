"""Every published recipe file against the paper's and the public code's numbers, written here (docs/recipes.md)."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from launch.__main__ import main
from launch.config import load_config
from launch.training.checkpoints import load_module, read_checkpoint
from launch.training.config import TrainConfig
from launch.training.trainer import start
from vjepa.jepa import JEPA
from vjepa.optim import lr_schedule, momentum_schedule, weight_decay_schedule

FOLDER = Path(__file__).parents[2] / "configs" / "pretrain"
TINY = str(FOLDER / "tiny_cpu.yaml")
SIZES = {"vitl": (1024, 24, 16, 4096), "vith": (1280, 32, 16, 5120), "vitg": (1408, 40, 22, 6144)}
VJEPA1 = {
    "data": (16, 4, None, 224, (0.3, 1.0), (0.75, 1.35), 0.5),
    "predictor": (384, 12, None, "mask"),
    "encoder": ("sincos", "plain"),
    "run": (90_000, 3072, 24, None),
    "clip": (10.0, 12_300),
}
VJEPA2 = {
    "data": (16, 4, 4.0, 256, (0.3, 1.0), (0.75, 1.35), 0.5),
    "predictor": (384, 12, 12, "clip"),
    "encoder": ("rotary", "scaled"),
    "run": (240_000, 3072, 24, None),
    "clip": (0.0, None),
}
COOLDOWN = {**VJEPA2, "data": (64, *VJEPA2["data"][1:]), "run": (12_000, 3072, 12, "all")}
RECIPES: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "vjepa1_vitl16": (SIZES["vitl"], VJEPA1),
    "vjepa1_vith16": (SIZES["vith"], VJEPA1),
    **{f"vjepa2_{size}": (shape, VJEPA2) for size, shape in SIZES.items()},
    **{f"vjepa2_{size}_cooldown": (shape, COOLDOWN) for size, shape in SIZES.items()},
}


def load(name: str) -> TrainConfig:
    return load_config(TrainConfig, FOLDER / f"{name}.yaml", [])


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_file_resolves_to_the_published_numbers(name: str) -> None:
    config, (shape, wanted) = load(name), RECIPES[name]
    data, predictor, encoder, run, optim = config.data, config.predictor, config.encoder, config.run, config.optim
    width, depth, heads, ratio = encoder.shape
    assert (width, depth, heads, round(width * ratio)) == shape
    assert (encoder.patch, encoder.tubelet) == (16, 2)
    assert (encoder.positions, encoder.init) == wanted["encoder"]
    clip = (data.frames, data.stride, data.fps, data.crop, data.scale, data.aspect, data.flip)
    assert clip == wanted["data"]
    assert (predictor.width, predictor.depth, predictor.heads, predictor.mask_token) == wanted["predictor"]
    assert (run.steps, run.batch, run.batch_per_device, run.start_weights) == wanted["run"]
    assert (optim.betas, optim.eps, optim.stretch, optim.ahead, config.loss.power) == ((0.9, 0.999), 1e-8, 1.25, 1, 1.0)
    assert optim.clip == wanted["clip"][0]
    if optim.clip:
        first = wanted["clip"][1]
        assert [optim.clips_at(step, run.steps) for step in (first - 1, first)] == [False, True]


@pytest.mark.parametrize("name", RECIPES)
def test_the_masks_of_a_recipe_are_the_published_ones(name: str) -> None:
    masks = load(name).masks
    assert [(mask.num_blocks, mask.spatial_scale) for mask in masks.values()] == [(8, (0.15, 0.15)), (2, (0.7, 0.7))]
    for mask in masks.values():
        assert (1 / mask.aspect[1], 1 / mask.aspect[0]) == pytest.approx((0.75, 1.5))  # height / width
        assert (mask.kind, mask.drop, mask.keep, mask.lengths_of_batch) == ("blocks", "last", None, None)
        assert mask.max_temporal_keep == 1.0
        assert mask.follows_batch


@pytest.mark.parametrize("name", ["vjepa1_vitl16", "vjepa2_vitl"])
def test_the_fixed_variant_differs_only_in_its_masks_and_is_free_of_the_device_batch(name: str) -> None:
    published, fixed = load(name), load(f"{name}_fixed")
    recomputes = published.encoder.checkpoint_activations  # changes memory and time, not what is learned
    encoder = replace(fixed.encoder, checkpoint_activations=recomputes)
    assert replace(fixed, masks=published.masks, run=published.run, encoder=encoder) == published
    assert replace(fixed.run, batch_per_device=24) == published.run
    assert published.jepa.follows_device_batch
    assert not fixed.jepa.follows_device_batch
    for mask in fixed.masks.values():
        assert (mask.drop, mask.lengths_of_batch, mask.borrow) == ("random", 24, False)


VALUES = {  # learning rate of the first update, of that after half the run, and of the last; from the equations
    "vjepa1_vitl16": (2.0003542e-4, 4.7320e-4, 7.5042e-5),
    "vjepa2_vitl": (1.0003542e-4, 5.25e-4, 5.25e-4),
    "vjepa2_vitl_cooldown": (5.24965e-4, 3.15365e-4, 1.058e-4),
}


@pytest.mark.parametrize("name", VALUES)
def test_learning_rates_of_a_recipe(name: str) -> None:
    config = load(name)
    steps = config.run.steps
    rate = lr_schedule(config.jepa.optim, steps)
    assert [rate(step) for step in (0, steps // 2 - 1, steps - 1)] == pytest.approx(VALUES[name], rel=1e-3)


def test_weight_decay_and_momentum_of_the_recipes() -> None:
    for name, decays, momenta in (
        ("vjepa1_vitl16", (0.04, 0.3656), (0.998, 0.9996)),
        ("vjepa2_vitl", (0.04, 0.04), (0.99925, 0.99925)),
        ("vjepa2_vitg_cooldown", (0.04, 0.04), (0.99925, 0.99925)),
    ):
        config = load(name)
        steps = config.run.steps
        decay = weight_decay_schedule(config.jepa.optim, steps)
        momentum = momentum_schedule(*config.teacher.momenta(steps), steps, config.optim.stretch)
        assert (decay(0), decay(steps - 1)) == pytest.approx(decays, rel=1e-3)
        assert (momentum(0), momentum(steps)) == pytest.approx(momenta, abs=1e-6)


@pytest.fixture
def primary(words: list[str], tmp_path: Path) -> tuple[list[str], Path]:
    """Overrides of a tiny run, and the run after three steps."""
    quick = [
        *words,
        "predictor.heads=2",
        "health.pictures_every=null",
        "health.matrix_tflops=1",
        "teacher.momentum=0.5",
    ]
    assert main(["train", TINY, *quick, "run.steps=3"]) == 0
    return [*quick, f"run.start={tmp_path / 'run'}", f"run.output={tmp_path / 'cooldown'}"], tmp_path / "run"


def test_a_cooldown_goes_on_from_both_encoders_the_predictor_and_adams_moments(
    primary: tuple[list[str], Path],
) -> None:
    overrides, run = primary
    config = load_config(TrainConfig, TINY, [*overrides, "run.start_weights=all", "data.frames=8", "data.crop=48"])
    model, before = JEPA(config.jepa), load_module(run)
    start(model, config)
    assert model.config.encoder.grid == (4, 6, 6)
    begun = model.objective.state_dict()
    for name, value in before.objective.state_dict().items():
        assert torch.equal(begun[name], value), name
    apart = before.context_encoder.blocks[0].mlp.fc1.weight - before.target_encoder.encoder.blocks[0].mlp.fc1.weight
    assert apart.any(), "the encoders must differ for this to mean anything"
    optimizer = model.configure_optimizers()
    stored = read_checkpoint(next((run / "checkpoints").glob("*3.ckpt")))["optimizer_states"][0]
    numbers = [number for group in stored["param_groups"] for number in group["params"]]
    own = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, parameter in zip(numbers, own, strict=True):
        for key, value in stored["state"][number].items():
            assert torch.equal(optimizer.state[parameter][key], value), key
    assert not model.moments, "they are handed to the optimiser once"


def test_a_cooldown_trains_and_counts_updates_from_the_primary_run(primary: tuple[list[str], Path]) -> None:
    overrides, run = primary
    assert main(["train", TINY, *overrides, "run.start_weights=all", "run.steps=2"]) == 0
    stored = read_checkpoint(next((run.parent / "cooldown" / "checkpoints").glob("*2.ckpt")))
    steps = {int(state["step"]) for state in stored["optimizer_states"][0]["state"].values()}
    assert steps == {5}


def test_a_cooldown_without_a_run_to_start_from_is_refused(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", TINY, *words, "run.start_weights=all"]) == 2
    assert "run.start_weights=all needs run.start" in capsys.readouterr().err


def test_a_cooldown_of_another_architecture_names_the_keys(
    primary: tuple[list[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", TINY, *primary[0], "run.start_weights=all", "predictor.depth=2"]) == 2
    assert "the file has predictor.depth=1, the config 2" in capsys.readouterr().err
