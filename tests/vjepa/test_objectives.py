"""Every choice of targets and objective: where gradients flow, what equals what, and its stored curve."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from batches import losses_by_hand, make_batch
from torch import Tensor
from torch.nn import functional

from vjepa.encoder import Encoder, EncoderConfig, choose_levels
from vjepa.jepa import JEPA, JepaConfig
from vjepa.masks import MaskConfig
from vjepa.objectives.dense import DenseOptions, near_the_mask
from vjepa.objectives.views import ViewsOptions, attract, draw_view
from vjepa.patches import cut_patches
from vjepa.regularise import RegulariserConfig
from vjepa.targets import PixelTargets, TeacherConfig

GOLDEN = Path(__file__).parent / "golden_objectives.json"
SMALL_VIEWS = ViewsOptions(narrow=1, projection=8)
CHOICES: dict[str, dict[str, Any]] = {
    "average": {},
    "average_vicreg": {"regulariser": RegulariserConfig(variance=0.1, covariance=0.1)},
    "average_sigreg": {"regulariser": RegulariserConfig(sigreg=0.05, slices=16)},
    "stop_gradient": {"teacher": TeacherConfig(source="stop_gradient")},
    "frozen": {"teacher": TeacherConfig(source="frozen", weights="given")},
    "pixels": {"teacher": TeacherConfig(source="pixels")},
    "dense": {"objective": "dense", "options": DenseOptions(levels=2)},
    "views_sigreg": {
        "objective": "views", "options": SMALL_VIEWS, "regulariser": RegulariserConfig(sigreg=0.05, slices=16),
    },
    "views_vicreg": {
        "objective": "views", "options": SMALL_VIEWS, "regulariser": RegulariserConfig(variance=1.0, covariance=0.1),
    },
    "views_contrast": {"objective": "views", "options": replace(SMALL_VIEWS, attract="contrast", narrow=0)},
}  # fmt: skip


def make(tiny: JepaConfig, name: str) -> JEPA:
    config = replace(tiny, **CHOICES[name])
    return JEPA(config, Encoder(config.encoder) if name == "frozen" else None)


@pytest.mark.parametrize("name", CHOICES)
def test_gradients_flow_to_all_that_is_trained_and_nowhere_else(tiny: JepaConfig, name: str) -> None:
    model = make(tiny, name)
    model.watching = True
    model.training_step(make_batch(0), 0).backward()
    trained = {id(p) for module in model.trained_modules().values() for p in module.parameters()}
    for label, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (id(parameter) in trained), label
        assert label.startswith("objective.target_encoder.") == (id(parameter) not in trained)
    assert model.watched is not None
    assert not model.watched.loss.requires_grad
    assert not any(one.prediction.requires_grad or one.context.requires_grad for one in model.watched.predictions)


@pytest.mark.parametrize("name", CHOICES)
def test_tiny_runs_match_golden_losses(tiny: JepaConfig, name: str) -> None:
    """10 steps of each objective against a stored curve; `GOLDEN=1` rewrites what is meant to change."""
    torch.manual_seed(0)  # of the frozen teacher
    losses = losses_by_hand(make(tiny, name), map(make_batch, range(10)))
    stored = json.loads(GOLDEN.read_text()) if GOLDEN.is_file() else {}
    if os.environ.get("GOLDEN"):
        stored[name] = [round(loss, 6) for loss in losses]
        GOLDEN.write_text(json.dumps(stored, indent=1) + "\n")
    assert losses == pytest.approx(stored[name], abs=2e-4)


def test_stop_gradient_is_a_moving_average_without_memory(tiny: JepaConfig) -> None:
    own = JEPA(replace(tiny, teacher=TeacherConfig(source="stop_gradient")))
    average = JEPA(replace(tiny, teacher=TeacherConfig(momentum=0.0, final_momentum=0.0)))
    assert losses_by_hand(own, map(make_batch, range(4))) == losses_by_hand(average, map(make_batch, range(4)))


def test_frozen_is_a_moving_average_that_never_moves(tiny: JepaConfig) -> None:
    begun = JEPA(tiny).context_encoder
    frozen = JEPA(replace(tiny, teacher=TeacherConfig(source="frozen", weights="given")), begun)
    average = JEPA(replace(tiny, teacher=TeacherConfig(momentum=1.0, final_momentum=1.0)))
    assert losses_by_hand(frozen, map(make_batch, range(4))) == losses_by_hand(average, map(make_batch, range(4)))


def test_pixel_targets_are_those_of_an_encoder_that_passes_pixels_on() -> None:
    """An encoder whose embedding is the identity and whose only block adds nothing says what PixelTargets says."""
    width = 3 * 2 * 4 * 4
    config = EncoderConfig(size="custom", width=width, depth=1, heads=2, patch=4, frames=4, crop=8, positions="rotary")
    encoder = Encoder(config)
    with torch.no_grad():
        encoder.patch_embed.proj.weight.copy_(torch.eye(width).view_as(encoder.patch_embed.proj.weight))
        for parameter in (*encoder.blocks[0].attn.proj.parameters(), *encoder.blocks[0].mlp.fc2.parameters()):
            parameter.zero_()
    video = torch.randn(2, 3, 4, 8, 8)
    pixels = PixelTargets(config)(video, encoder)
    passed = functional.layer_norm(encoder(video), (width,))
    torch.testing.assert_close(pixels, passed, atol=1e-4, rtol=1e-3)
    assert pixels.shape == (2, 8, width)
    torch.testing.assert_close(pixels, functional.layer_norm(cut_patches(video, 2, 4), (width,)))


def test_dense_with_one_level_and_no_visible_loss_is_the_masked_objective(tiny: JepaConfig) -> None:
    dense = JEPA(replace(tiny, objective="dense", options=DenseOptions(levels=1, visible=0.0)))
    assert losses_by_hand(dense, map(make_batch, range(4))) == pytest.approx(
        losses_by_hand(JEPA(tiny), map(make_batch, range(4))), abs=1e-6
    )


def test_dense_weighs_visible_tokens_by_their_distance() -> None:
    context, target = torch.tensor([[0, 1, 11]]), torch.tensor([[2, 3]])  # grid 3 x 2 x 2: (t, y, x)
    nearness = near_the_mask(context, target, (3, 2, 2))
    assert nearness[0, :2].tolist() == pytest.approx([1.0, 1.0])  # (0,0,0)-(0,1,0) and (0,0,1)-(0,1,1)
    assert nearness[0, 2] == pytest.approx(2**-0.5)  # (2,1,1)-(0,1,1)
    assert choose_levels(24, 4) == (5, 11, 17, 23)
    config = DenseOptions(visible=0.5, ramp=(0.2, 0.4))
    assert [config.visible_weight(done) for done in (0.0, 0.2, 0.3, 0.4, 1.0)] == pytest.approx([0, 0, 0.25, 0.5, 0.5])


def test_a_deeper_frozen_teacher_gives_its_own_equally_spaced_levels(tiny: JepaConfig) -> None:
    deep = Encoder(replace(tiny.encoder, depth=6))
    config = replace(tiny, objective="dense", options=DenseOptions(levels=2))
    model = JEPA(replace(config, teacher=TeacherConfig(source="frozen", weights="given")), deep)
    assert model.target_encoder.levels == (2, 5)
    assert model.objective.levels == (0, 1)
    assert torch.isfinite(model.training_step(make_batch(0), 0))


def test_spare_mask_tokens_wait_for_no_gradient(tiny: JepaConfig) -> None:
    model = JEPA(replace(tiny, predictor=replace(tiny.predictor, mask_tokens=5)))
    model.training_step(make_batch(0), 0).backward()
    assert model.predictor is not None
    assert [token.requires_grad for token in model.predictor.mask_tokens] == [True, True, False, False, False]
    assert all(parameter.grad is not None for parameter in model.predictor.parameters() if parameter.requires_grad)


def test_what_depends_on_the_clips_of_a_device_says_so(tiny: JepaConfig) -> None:
    fixed = {"ahead": tiny.masks["ahead"]}
    assert not replace(tiny, masks=fixed).follows_device_batch
    assert replace(tiny, masks={"cut": MaskConfig()}).follows_device_batch
    assert replace(tiny, masks=fixed, regulariser=RegulariserConfig(variance=0.1)).follows_device_batch
    assert replace(tiny, masks=fixed, objective="views").follows_device_batch


def test_views_follow_from_seed_and_place_and_differ(tiny: JepaConfig) -> None:
    video = torch.randn(4, 3, 4, 32, 32)
    places = torch.arange(10, 14)

    def view(number: int, some: slice = slice(None)) -> Tensor:
        return draw_view(SMALL_VIEWS, video[some], places[some], tiny, number)

    torch.testing.assert_close(view(0)[1:3], view(0, slice(1, 3)))  # another batch, the same views
    assert not torch.allclose(view(0), view(1))
    assert view(0).shape == (4, 3, 4, 32, 32)
    assert view(2).shape == (4, 3, 4, 16, 16)


def test_an_unchanged_view_is_the_clip(tiny: JepaConfig) -> None:
    video = torch.randn(2, 3, 4, 32, 32)
    still = ViewsOptions(wide=2, narrow=0, wide_scale=(1.0, 1.0), jitter=0.0)
    torch.testing.assert_close(draw_view(still, video, torch.arange(2), tiny, 0), video, atol=1e-5, rtol=1e-4)
    mirrored = replace(still, flip=1.0)
    torch.testing.assert_close(
        draw_view(mirrored, video, torch.arange(2), tiny, 0), video.flip(-1), atol=1e-5, rtol=1e-4
    )


def test_equal_views_attract_no_more() -> None:
    rows = torch.randn(1, 5, 8).expand(3, -1, -1)
    assert attract(SMALL_VIEWS, rows) == pytest.approx(0.0, abs=1e-12)
    apart = torch.stack([torch.zeros(5, 8), 2 * torch.ones(5, 8)])
    assert attract(replace(SMALL_VIEWS, narrow=0), apart) == pytest.approx(1.0)


def test_choices_that_cannot_be_meant_are_refused(tiny: JepaConfig) -> None:
    with pytest.raises(ValueError, match=r"teacher.weights is required with teacher.source=frozen"):
        TeacherConfig(source="frozen")
    other = Encoder(replace(tiny.encoder, patch=16))
    with pytest.raises(ValueError, match=r"same token grid, but its patch is 16 and encoder.patch is 8"):
        JEPA(replace(tiny, teacher=TeacherConfig(source="frozen", weights="given")), other)
    with pytest.raises(ValueError, match=r"dense.levels must be at most the encoder's 2 blocks, got 4"):
        JEPA(replace(tiny, objective="dense"))
    with pytest.raises(ValueError, match=r"teacher.source=pixels has none"):
        replace(tiny, objective="dense", teacher=TeacherConfig(source="pixels"))


def test_the_encoder_to_keep_is_the_moving_average_or_the_trained_one(tiny: JepaConfig) -> None:
    for name in CHOICES:
        model = make(tiny, name)
        kept = model.target_encoder.encoder if tiny.teacher == model.config.teacher else model.context_encoder
        assert model.trained_encoder is kept, name
        assert JepaConfig.from_dict(_plain(model)) == model.config


def _plain(model: JEPA) -> dict[str, Any]:
    checkpoint: dict[str, Any] = {}
    model.on_save_checkpoint(checkpoint)
    plain: dict[str, Any] = checkpoint["config"]
    return plain
