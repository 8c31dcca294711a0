"""The predictor's variable: off it changes nothing; on, it is limited, trained and stored."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.vjepa.batches import make_batch
from vjepa.batch import ClipGroup
from vjepa.config import JepaConfig
from vjepa.encoder import EncoderConfig
from vjepa.formats.native import load_native, save_encoder
from vjepa.jepa import JEPA
from vjepa.latent import LatentConfig, Posterior, minimise_energy, normal_numbers
from vjepa.masks import MaskConfig, Masks
from vjepa.objectives.objective import StepContext
from vjepa.pixels import normalise
from vjepa.predictor import Predictor, PredictorConfig

ENCODER = EncoderConfig(size="custom", width=24, depth=1, heads=2, patch=8, tubelet=2, frames=4, crop=16)
PREDICTOR = PredictorConfig(width=24, depth=1, heads=2)
MASKS = {"future": MaskConfig(kind="future")}
TWO = LatentConfig(dims=2, kl=0.003)


def make_config(latent: LatentConfig | None = None) -> JepaConfig:
    predictor = replace(PREDICTOR, latent=latent or LatentConfig())
    return JepaConfig(encoder=ENCODER, predictor=predictor, masks=MASKS, steps=10)


def step(model: JEPA, clips: Tensor, first: int = 0) -> Tensor:
    samples = torch.arange(first, first + len(clips))
    return model.objective.step(ClipGroup(normalise(clips)), StepContext(samples, first + len(clips), 0.0)).loss


def test_off_it_adds_no_parameter_and_no_description() -> None:
    model = JEPA(make_config())
    assert model.predictor is not None
    assert not [name for name, _ in model.named_parameters() if "variable" in name]
    assert "latent" not in PREDICTOR.describe()
    assert PredictorConfig.from_stored(PREDICTOR.describe()) == PREDICTOR
    with_variable = replace(PREDICTOR, latent=TWO)
    assert PredictorConfig.from_stored(with_variable.describe()) == with_variable


def test_without_a_variable_none_is_taken_or_inferred() -> None:
    predictor = Predictor(PREDICTOR, ENCODER)
    mask = Masks(torch.arange(4)[None], torch.arange(4, 8)[None])
    with pytest.raises(ValueError, match="has no latent variable"):
        predictor(torch.zeros(1, 4, 24), mask.context, mask.target, latent=torch.zeros(1, 2))
    with pytest.raises(ValueError, match="has no latent variable"):
        predictor.infer(torch.zeros(1, 8, 24), torch.zeros(1, 4, 24), [mask])


def test_kl_is_that_of_torch() -> None:
    mean, log_variance = torch.randn(5, 3), torch.randn(5, 3)
    normal = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    expected = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(Posterior(mean, log_variance).kl(), expected)


def test_noise_is_standard_normal_and_depends_on_stream_position_alone() -> None:
    samples = torch.arange(4000)
    numbers = normal_numbers(samples, 3, 0, 2)
    assert numbers.isfinite().all()
    assert numbers.mean().abs() < 0.05
    assert (numbers.std() - 1).abs() < 0.05
    torch.testing.assert_close(normal_numbers(samples[10:12], 3, 0, 2), numbers[10:12], rtol=0, atol=0)
    assert (normal_numbers(samples, 3, 1, 2) != numbers).any(1).all()


def test_every_part_of_the_variable_gets_a_gradient() -> None:
    model = JEPA(make_config(replace(TWO, sparsity=0.1)))
    step(model, make_batch(0).clips[:, :, :16, :16]).backward()
    assert model.predictor is not None
    for name, parameter in model.predictor.named_parameters():
        assert parameter.grad is not None, name


def test_the_penalty_is_in_the_loss_and_logged() -> None:
    clips = make_batch(0).clips[:, :, :16, :16]
    context = StepContext(torch.arange(len(clips)), len(clips), 0.0)
    outputs = [
        JEPA(make_config(replace(TWO, kl=weight))).objective.step(ClipGroup(normalise(clips)), context)
        for weight in (0.0, 2.0)
    ]
    kl = outputs[1].parts["latent_kl"]
    torch.testing.assert_close(outputs[1].loss - outputs[0].loss, 2.0 * kl)
    torch.testing.assert_close(outputs[1].parts["latent"], 2.0 * kl)


def test_z_moves_the_prediction_and_its_mean_is_the_default() -> None:
    predictor = Predictor(replace(PREDICTOR, latent=TWO), ENCODER)
    mask = Masks(torch.arange(4)[None], torch.arange(4, 8)[None])
    context = torch.randn(1, 4, 24)
    default = predictor(context, mask.context, mask.target)
    torch.testing.assert_close(default, predictor(context, mask.context, mask.target, latent=torch.zeros(1, 2)))
    assert (default - predictor(context, mask.context, mask.target, latent=torch.ones(1, 2))).abs().max() > 1e-4


def test_an_exported_predictor_with_a_variable_comes_back(tmp_path: Path) -> None:
    model = JEPA(make_config(TWO))
    save_encoder(model.trained_encoder, tmp_path, predictor=model.predictor)
    found = load_native(tmp_path).predictor
    assert found is not None
    assert found.variable is not None
    assert model.predictor is not None
    for name, value in model.predictor.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], value)


def test_energy_is_minimised_over_z() -> None:
    wanted = torch.tensor([[1.0, -1.0], [0.5, 2.0]])
    found = minimise_energy(lambda z: (z - wanted).square().sum(1), torch.zeros(2, 2), 200)
    torch.testing.assert_close(found, wanted, atol=0.02, rtol=0)


def test_settings_that_cannot_work_are_named() -> None:
    with pytest.raises(ValueError, match="predictor.latent.dims"):
        LatentConfig(dims=0)
    with pytest.raises(ValueError, match="predictor.latent.kl"):
        LatentConfig(dims=1, kl=-1)
    with pytest.raises(ValueError, match="objective=dense"):
        replace(make_config(TWO), objective="dense")
