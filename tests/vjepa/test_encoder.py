"""The encoder sees what it is shown and nothing else."""

from dataclasses import replace

import pytest
import torch

from vjepa.encoder import Encoder, EncoderConfig
from vjepa.masks import Masks
from vjepa.patches import gather_tokens
from vjepa.pixels import MEAN, STD, normalise
from vjepa.predictor import Predictor, PredictorConfig

CONFIG = EncoderConfig(size="custom", width=24, depth=2, heads=2, patch=8, frames=4, crop=32)


@pytest.fixture(params=["sincos", "rotary"])
def encoder(request: pytest.FixtureRequest) -> Encoder:
    torch.manual_seed(0)
    return Encoder(replace(CONFIG, positions=request.param))


def test_hidden_pixels_cannot_change_the_context(encoder: Encoder) -> None:
    video = torch.randn(2, 3, 4, 32, 32)
    index = torch.tensor([[0, 5, 17, 30], [1, 2, 3, 31]])
    before = encoder(video, index)
    changed = torch.randn_like(video)
    for clip in range(2):
        for token in index[clip].tolist():
            t, h, w = token // 16, token // 4 % 4, token % 4
            tube = (clip, slice(None), slice(2 * t, 2 * t + 2), slice(8 * h, 8 * h + 8), slice(8 * w, 8 * w + 8))
            changed[tube] = video[tube]
    assert torch.equal(encoder(changed, index), before)
    changed[0, :, :2, :8, :8] += 1
    assert not torch.equal(encoder(changed, index), before)


def test_all_tokens_by_index_equal_all_tokens(encoder: Encoder) -> None:
    video = torch.randn(2, 3, 4, 32, 32)
    index = torch.randperm(32).repeat(2, 1)
    torch.testing.assert_close(encoder(video, index), gather_tokens(encoder(video), index))


@pytest.mark.parametrize("half", [False, True])
def test_selections_side_by_side_are_encoded_and_predicted_as_if_alone(encoder: Encoder, half: bool) -> None:
    video = torch.randn(2, 3, 4, 32, 32)
    order = torch.stack([torch.randperm(32) for _ in range(2)])
    masks = [Masks(order[:, :5], order[:, 5:12]), Masks(order[:, 20:32], order[:, 3:5])]
    predictor = Predictor(PredictorConfig(width=12, depth=2, heads=2, mask_tokens=2), encoder.config)
    lengths = [mask.context.shape[1] for mask in masks]
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        together = encoder(video, torch.cat([mask.context for mask in masks], 1), lengths)
        hidden = predictor.hidden(together, masks)
        for kind, (mask, context) in enumerate(zip(masks, together.split(lengths, 1), strict=True)):
            torch.testing.assert_close(context, encoder(video, mask.context))
            torch.testing.assert_close(hidden[kind], predictor(context, *mask, kind))


def test_patch_embedding_is_the_convolution() -> None:
    encoder = Encoder(CONFIG)
    video = torch.randn(2, 3, 4, 32, 32)
    expected = encoder.patch_embed.proj(video).flatten(2).transpose(1, 2)
    torch.testing.assert_close(encoder.patch_embed(video), expected)


def test_images_are_one_tubelet_of_equal_frames(encoder: Encoder) -> None:
    image = torch.randn(2, 3, 32, 32)
    still = image.unsqueeze(2).expand(-1, -1, 2, -1, -1)
    assert encoder(image).shape == (2, 16, 24)
    assert torch.equal(encoder(image), encoder(still))


def test_other_lengths_and_sizes_than_trained_on(encoder: Encoder) -> None:
    assert encoder(torch.randn(1, 3, 8, 48, 32)).shape == (1, 4 * 6 * 4, 24)


def test_layers_are_what_each_block_left(encoder: Encoder) -> None:
    video = torch.randn(1, 3, 4, 32, 32)
    first, last = encoder.layers(video, (0, -1))
    torch.testing.assert_close(last, encoder(video))
    assert not torch.allclose(first, last)
    with pytest.raises(ValueError, match="layers must lie in"):
        encoder.layers(video, (2,))


def test_activation_checkpointing_changes_nothing() -> None:
    torch.manual_seed(0)
    plain = Encoder(CONFIG)
    saving = Encoder(replace(CONFIG, checkpoint_activations=True))
    saving.load_state_dict(plain.state_dict())
    video = torch.randn(1, 3, 4, 32, 32)
    for model in (plain, saving):
        model.train()(video).square().mean().backward()
    for mine, theirs in zip(plain.parameters(), saving.parameters(), strict=True):
        assert torch.equal(mine.grad, theirs.grad)


def test_normalise_standardises_each_colour() -> None:
    clips = torch.randint(0, 256, (2, 4, 8, 8, 3), dtype=torch.uint8)
    expected = (clips.double() / 255 - torch.tensor(MEAN).double()) / torch.tensor(STD).double()
    torch.testing.assert_close(normalise(clips).double(), expected.permute(0, 4, 1, 2, 3), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"crop": 30}, "data.crop must be a multiple of encoder.patch"),
        ({"frames": 5}, "data.frames must be 1"),
        ({"width": 25}, "encoder.width must be a multiple"),
        ({"width": 0}, "needs encoder.width"),
        ({"width": 8, "heads": 4, "positions": "rotary"}, "at least 6 wide"),
    ],
)
def test_impossible_encoders_are_refused_by_name(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **wrong)


def test_a_clip_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="got 4 frames of 30x32"):
        Encoder(CONFIG)(torch.zeros(1, 3, 4, 30, 32))
    with pytest.raises(ValueError, match=r"got \[1, 1, 4, 32, 32\]"):
        Encoder(CONFIG)(torch.zeros(1, 1, 4, 32, 32))


@pytest.mark.parametrize(
    ("size", "millions"), [("tiny", 5.6), ("small", 22), ("base", 86), ("large", 303), ("giant", 1012)]
)
def test_named_sizes_have_their_parameters(size: str, millions: float) -> None:
    with torch.device("meta"):
        encoder = Encoder(EncoderConfig(size=size, positions="rotary"))
    found = sum(parameter.numel() for parameter in encoder.parameters()) / 1e6
    assert found == pytest.approx(millions, rel=0.03)
