"""A run that starts from somebody's weights: at another crop, with a copy for the target encoder, and never half."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from launch.__main__ import main
from launch.config import load_config
from launch.training.checkpoints import load_module
from launch.training.config import TrainConfig
from launch.training.trainer import start
from vjepa.encoder import Encoder, EncoderConfig
from vjepa.formats.meta import save_meta
from vjepa.formats.native import save_encoder
from vjepa.jepa import JEPA
from vjepa.optim import lr_schedule
from vjepa.predictor import Predictor, PredictorConfig

CONFIG = str(Path(__file__).parent.parent.parent / "configs" / "pretrain" / "tiny_cpu.yaml")


@pytest.fixture
def trained() -> tuple[Encoder, Predictor]:
    """Weights of the architecture that `words` asks for, at 16 pixels instead of 32."""
    config = EncoderConfig(size="custom", width=24, depth=2, heads=2, patch=8, frames=4, crop=16)
    torch.manual_seed(1)
    encoder, predictor = Encoder(config), Predictor(PredictorConfig(width=12, depth=1, heads=3, mask_tokens=3), config)
    for module in (encoder, predictor):
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    return encoder, predictor


@pytest.mark.parametrize("kind", ["native", "meta"])
def test_run_starts_from_weights_at_another_crop(
    trained: tuple[Encoder, Predictor], words: list[str], tmp_path: Path, kind: str
) -> None:
    encoder, predictor = trained
    if kind == "native":
        words = [*words, f"run.start={save_encoder(encoder, tmp_path / 'weights', {}, predictor)}"]
    else:
        words = [*words, f"run.start={save_meta(encoder, predictor, tmp_path)}", "run.start_weights=target_encoder"]
    config = load_config(TrainConfig, CONFIG, words)
    model = JEPA(config.jepa)
    assert model.config.encoder.grid == (2, 4, 4)
    start(model, config)
    begun, target = model.context_encoder.state_dict(), model.target_encoder.encoder.state_dict()
    for name, value in encoder.state_dict().items():
        assert torch.equal(begun[name], value), name
        assert torch.equal(target[name], value), name
    stored = predictor.state_dict()
    for name, value in model.predictor.state_dict().items():
        assert torch.equal(value, stored[name]), name
    assert encoder.config.grid == (2, 2, 2)
    assert model.context_encoder.position_table.shape[-2] == 32, "sin-cos positions made for the new grid"


def test_training_goes_on_from_the_weights(
    trained: tuple[Encoder, Predictor], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_encoder(trained[0], tmp_path / "weights")
    assert main(["train", CONFIG, *words, f"run.start={folder}", "run.steps=1", "optim.start_lr=1e-9"]) == 0
    shown = capsys.readouterr().out
    assert f"starting from {folder}" in shown
    assert "it has no predictor: a new one is initialised" in shown
    begun = load_module(tmp_path / "run").context_encoder.state_dict()
    for name, value in trained[0].state_dict().items():
        torch.testing.assert_close(begun[name], value, atol=1e-6, rtol=0)


def test_weights_of_another_architecture_name_the_keys(
    trained: tuple[Encoder, Predictor], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_encoder(trained[0], tmp_path / "weights", {}, trained[1])
    changed = ["encoder.depth=3", "encoder.patch=16", "predictor.depth=2"]
    assert main(["train", CONFIG, *words, f"run.start={folder}", *changed]) == 2
    message = capsys.readouterr().err
    for part in (
        "does not fit the config", "the file has encoder.depth=2, the config 3",
        "the file has encoder.patch=8, the config 16", "the file has predictor.depth=1, the config 2",
    ):  # fmt: skip
        assert part in message, part


def test_start_that_is_not_there_is_named(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", CONFIG, *words, "run.start=nowhere"]) == 2
    assert "nowhere" in capsys.readouterr().err


@pytest.mark.parametrize("positions", ["sincos", "rotary"])
def test_a_cooldown_goes_on_from_a_run_at_another_length_and_crop(
    words: list[str], tmp_path: Path, positions: str
) -> None:
    """More frames, a larger crop, no warm-up and a rate that falls to its end; the rest is the primary run's."""
    quick = [
        *words,
        f"encoder.positions={positions}",
        "predictor.heads=2",
        "health.pictures_every=null",
        "health.matrix_tflops=1",
    ]
    assert main(["train", CONFIG, *quick, "run.steps=2"]) == 0
    primary = load_module(tmp_path / "run")
    longer = ["data.frames=8", "data.crop=48", "optim.warmup_steps=0", "optim.lr_shape=linear", "optim.stretch=1"]
    cooldown = [*quick, *longer, f"run.start={tmp_path / 'run'}", f"run.output={tmp_path / 'cooldown'}", "run.steps=4"]
    config = load_config(TrainConfig, CONFIG, cooldown)
    model = JEPA(config.jepa)
    start(model, config)
    assert model.config.encoder.grid == (4, 6, 6)
    for name, value in primary.target_encoder.state_dict().items():
        assert torch.equal(model.context_encoder.state_dict()[name.removeprefix("encoder.")], value), name
    rates = [model.lr_at(step) for step in range(5)]
    assert rates[0] == config.optim.lr
    assert rates[4] == pytest.approx(config.optim.final_lr)
    torch.testing.assert_close(torch.tensor(rates).diff(), torch.full((4,), rates[1] - rates[0]))
    assert main(["train", CONFIG, *cooldown]) == 0
    assert load_module(tmp_path / "cooldown").position == 32


@pytest.mark.parametrize("size", ["vitl", "vith", "vitg"])
def test_a_cooldown_recipe_has_the_architecture_of_its_primary_one(size: str) -> None:
    folder = Path(CONFIG).parent
    primary = load_config(TrainConfig, folder / f"vjepa2_{size}.yaml", [])
    cooldown = load_config(TrainConfig, folder / f"vjepa2_{size}_cooldown.yaml", [])
    assert replace(cooldown.encoder, frames=16) == primary.encoder
    assert cooldown.predictor == primary.predictor
    assert cooldown.masks == primary.masks
    assert (cooldown.data.frames, cooldown.run.steps, cooldown.run.batch) == (64, 12_000, 3072)
    rate = lr_schedule(cooldown.optim, cooldown.run.steps)
    assert (rate(0), rate(12_000)) == (pytest.approx(5.25e-4, rel=1e-3), pytest.approx(1.058e-4, rel=1e-3))
