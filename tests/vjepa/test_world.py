"""World models: what may depend on what, what equals what, and that a saved one is the same."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import vjepa
from vjepa.batch import open_batch
from vjepa.encoder import EncoderConfig
from vjepa.jepa import JEPA, JepaConfig
from vjepa.loss import LossConfig
from vjepa.objectives.objective import StepContext, StepOutput
from vjepa.objectives.rollout import RolloutOptions
from vjepa.registry import DYNAMICS
from vjepa.regularise import RegulariserConfig
from vjepa.targets import TeacherConfig
from vjepa.world.frames import encode_frames, within_clip_share

VECTOR = EncoderConfig(kind="conv", size="custom", width=8, depth=2, heads=1, patch=32, tubelet=1, frames=5, crop=32)
MAP = replace(VECTOR, patch=8)
VIT = EncoderConfig(size="custom", width=24, depth=1, heads=2, patch=16, tubelet=1, frames=5, crop=32)
SMALL = RolloutOptions(width=24, depth=1, heads=2, action_values=4, inverse=1.0, surprise=True, similarity=0.1)
OWN = TeacherConfig(source="stop_gradient")
CHOICES: dict[str, dict[str, Any]] = {
    "vector": {"encoder": VECTOR},
    "vector_average": {"encoder": VECTOR, "teacher": TeacherConfig()},
    "vector_through_targets": {"encoder": VECTOR, "options": replace(SMALL, target_gradient=True)},
    "vector_sigreg": {"encoder": VECTOR, "regulariser": RegulariserConfig(sigreg=0.1, slices=8)},
    "gru": {"encoder": VECTOR, "options": replace(SMALL, predictor="gru")},
    "map": {"encoder": MAP, "options": replace(SMALL, predictor="conv", readout=6)},
    "map_transformer": {"encoder": MAP, "options": replace(SMALL, predictor="transformer")},
    "vit_transformer": {"encoder": VIT, "options": replace(SMALL, predictor="transformer", normalise=True)},
}  # fmt: skip


def make(name: str) -> JEPA:
    values = {
        "options": SMALL, "teacher": OWN, "loss": LossConfig(power=2.0),
        "regulariser": RegulariserConfig(variance=1.0, covariance=0.1, temporal=1.0), **CHOICES[name],
    }  # fmt: skip
    return JEPA(JepaConfig(objective="rollout", steps=20, **values))


def make_clips(seed: int = 0, batch: int = 3) -> tuple[Tensor, Tensor]:
    """Clips uint8 [batch, 5, 32, 32, 3] and actions [batch, 4, 2, 2]."""
    generator = torch.Generator().manual_seed(seed)
    clips = torch.randint(0, 256, (batch, 5, 32, 32, 3), generator=generator, dtype=torch.uint8)
    return clips, torch.randn(batch, 4, 2, 2, generator=generator)


def wake(model: JEPA) -> None:
    """Give the layers that start at zero random weights, so that predictions depend on everything they may."""
    torch.manual_seed(1)
    for parameter in model.objective.transition.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)


def step(model: JEPA, clips: Tensor, actions: Tensor) -> StepOutput:
    group = open_batch({"clips": clips, "actions": actions}).groups[0]
    output: StepOutput = model.objective.step(group, StepContext(torch.arange(len(clips)), 8, 0.0))
    return output


@pytest.mark.parametrize("name", CHOICES)
def test_gradients_flow_to_all_that_is_trained_and_nowhere_else(name: str) -> None:
    model = make(name)
    wake(model)
    step(model, *make_clips()).loss.backward()
    trained = {id(p) for module in model.trained_modules().values() for p in module.parameters() if p.requires_grad}
    for label, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (id(parameter) in trained), label


@pytest.mark.parametrize("name", CHOICES)
def test_imagining_equals_repeated_steps(name: str) -> None:
    model = make(name)
    wake(model)
    world = model.objective.world.eval()
    clips, actions = make_clips()
    state = world.encode(clips[:, 0])
    with torch.no_grad():
        latents = world.imagine(state, actions.flatten(2))
        for number in range(4):
            state = world.step(state, actions[:, number].flatten(1))
            assert torch.equal(state.latent, latents[:, number])


@pytest.mark.parametrize("name", CHOICES)
def test_the_future_changes_nothing_before_it(name: str) -> None:
    model = make(name)
    wake(model)
    world, (clips, actions) = model.objective.world.eval(), make_clips()
    with torch.no_grad():
        before = world.encode_clip(vjepa.normalise(clips))
        taught = world.transition.dynamics.teach(before, actions.flatten(2))
        imagined = world.imagine(world.transition.begin(before[:, 0]), actions.flatten(2))
        clips[:, 3:], actions[:, 2:] = 255 - clips[:, 3:], -actions[:, 2:]
        after = world.encode_clip(vjepa.normalise(clips))
        taught_after = world.transition.dynamics.teach(after, actions.flatten(2))
        imagined_after = world.imagine(world.transition.begin(after[:, 0]), actions.flatten(2))
    assert torch.equal(before[:, :3], after[:, :3])
    assert torch.equal(taught[:, :2], taught_after[:, :2])  # frames 0 to 2, actions 0 and 1
    assert torch.equal(imagined[:, :2], imagined_after[:, :2])
    assert not torch.equal(taught[:, 2], taught_after[:, 2])
    assert not torch.equal(imagined[:, 2], imagined_after[:, 2])


def test_the_transformer_remembers_earlier_steps_in_one_pass_as_step_by_step() -> None:
    model = make("map_transformer")
    wake(model)
    dynamics, (clips, actions) = model.objective.transition.dynamics, make_clips()
    with torch.no_grad():
        latents = model.objective.world.encode_clip(vjepa.normalise(clips))
        memory = dynamics.begin(latents[:, 0])
        for number in range(4):
            following, memory = dynamics(latents[:, number], memory, actions[:, number].flatten(1))
            torch.testing.assert_close(dynamics.teach(latents, actions.flatten(2))[:, number], following)


def test_an_encoder_of_clips_sees_each_frame_alone() -> None:
    encoder = vjepa.Encoder(replace(VIT, tubelet=2, frames=4))
    video = vjepa.normalise(make_clips()[0])
    with torch.no_grad():
        features = encode_frames(encoder, video)
        torch.testing.assert_close(features[:, 2], encoder(video[:, :, [2, 2]]))


@pytest.mark.parametrize("name", ["vector", "map", "vit_transformer"])
def test_a_saved_world_model_is_loaded_bit_for_bit(name: str, tmp_path: Path) -> None:
    model = make(name)
    wake(model)
    world = model.objective.world.eval()
    world.save(tmp_path, {"steps": 20})
    loaded = vjepa.WorldModel.load(tmp_path)
    clips, actions = make_clips()
    with torch.no_grad():
        one, two = (each.imagine(each.encode(clips[:, 0]), actions.flatten(2)) for each in (world, loaded))
    assert torch.equal(one, two)


def test_within_clip_share_tells_moving_clips_from_still_ones() -> None:
    still = torch.randn(8, 1, 3).expand(-1, 5, -1)
    assert within_clip_share(still) < 1e-6
    assert within_clip_share(torch.randn(1, 5, 3).expand(8, -1, -1)) > 0.999


def test_training_lowers_the_error_of_what_can_be_predicted() -> None:
    """A bar whose place is the sum of the actions: after some steps the model beats standing still."""
    model = JEPA(
        JepaConfig(
            objective="rollout", encoder=VECTOR, teacher=OWN, loss=LossConfig(power=2.0), steps=60,
            options=replace(SMALL, width=64, target_gradient=True, inverse=3.0),
            regulariser=RegulariserConfig(variance=16.0, covariance=0.5, temporal=16.0),
        )
    )  # fmt: skip
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    for number in range(60):
        output = step(model, *make_bars(number))
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert output.parts["error_4"] < 0.5
    assert output.parts["within_clip"] > 0.2


def make_bars(seed: int, batch: int = 24) -> tuple[Tensor, Tensor]:
    """Clips of a dark bar at x, moved by the first number of each action."""
    generator = torch.Generator().manual_seed(seed)
    actions = torch.rand(batch, 4, 2, 2, generator=generator) * 4 - 2
    start = 10 + 12 * torch.rand(batch, 1, generator=generator)
    places = torch.cat([start, start + actions[..., 0].sum(2).cumsum(1)], 1)
    across = (torch.arange(32) - places[..., None]).abs() < 3
    clips = (255 - 200 * across.to(torch.uint8))[:, :, None, :, None].expand(-1, -1, 32, -1, 3)
    return clips.contiguous(), actions


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, r"needs the actions between the frames: set data.arrays"),
        ({"actions": torch.zeros(3, 3, 4)}, "needs 4 steps of actions, found 3"),
        ({"actions": torch.zeros(3, 4, 3, 2)}, "here 6, got 4"),
    ],
)
def test_a_batch_without_fitting_actions_is_refused(arrays: dict[str, Tensor], message: str) -> None:
    group = open_batch({"clips": make_clips()[0], **arrays}).groups[0]
    with pytest.raises(ValueError, match=message):
        make("vector").objective.step(group, StepContext(torch.arange(3), 3, 0.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher": TeacherConfig(source="pixels")}, "average or stop_gradient"),
        ({"teacher": TeacherConfig(), "options": replace(SMALL, target_gradient=True)}, "takes no gradient"),
        ({"options": replace(SMALL, predictor="nothing")}, "there is no 'nothing'"),
        ({"options": replace(SMALL, predictor="conv")}, "needs a map of cells"),
        ({"encoder": replace(VECTOR, tubelet=5)}, "must be 1 with encoder.kind=conv"),
        ({"encoder": replace(VECTOR, depth=5)}, "divisible by 64"),
        ({"encoder": replace(VECTOR, patch=16, depth=1)}, "power of 2"),
    ],
)
def test_settings_that_do_not_fit_are_refused_by_name(change: dict[str, Any], message: str) -> None:
    values = {"encoder": VECTOR, "options": SMALL, "teacher": OWN, **change}
    with pytest.raises(ValueError, match=message):
        JEPA(JepaConfig(objective="rollout", **values))


def test_every_predictor_is_tested() -> None:
    options = [choice.get("options", SMALL) for choice in CHOICES.values()]
    assert {one.predictor for one in options} == set(DYNAMICS)
