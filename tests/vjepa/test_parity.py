"""Our encoder and predictor against transformers' V-JEPA 2, with the same random weights, there and back."""

import json
from pathlib import Path

import pytest
import torch

from vjepa.encoder import Encoder, EncoderConfig
from vjepa.formats.loading import load_pretrained
from vjepa.formats.transformers import save_transformers, to_transformers
from vjepa.predictor import Predictor, PredictorConfig

transformers = pytest.importorskip("transformers")


def randomise(module: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


def make_pair(width: int, heads: int, mlp_ratio: float = 4.0) -> tuple[Encoder, Predictor]:
    """64 tokens; one mask token, which is what a VJEPA2Model uses."""
    config = EncoderConfig(
        size="custom", width=width, depth=3, heads=heads, mlp_ratio=mlp_ratio, frames=8, crop=64,
        positions="rotary", rotary_order="tiled",
    )  # fmt: skip
    encoder = Encoder(config).eval()
    predictor = Predictor(PredictorConfig(width=24, depth=2, heads=2, mask_tokens=1), config).eval()
    randomise(encoder)
    randomise(predictor)
    return encoder, predictor


@pytest.mark.parametrize(("width", "heads"), [(48, 2), (60, 3), (64, 2)])  # rotary remainder 0, 2 and 2 channels
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_encoder_and_predictor_match_transformers(width: int, heads: int, attention: str) -> None:
    encoder, predictor = make_pair(width, heads)
    theirs = to_transformers(encoder, predictor, attention=attention).eval()
    video = torch.randn(2, 3, 8, 64, 64)
    shuffled = torch.stack([torch.randperm(64) for _ in range(2)])
    context_index, target_index = shuffled[:, :20].sort(1).values, shuffled[:, 20:50].sort(1).values
    with torch.no_grad():
        expected = theirs(video.transpose(1, 2), context_mask=[context_index], target_mask=[target_index])
        ours = encoder(video)
        context = ours.gather(1, context_index.unsqueeze(-1).expand(-1, -1, width))
        prediction = predictor(context, context_index, target_index)
    torch.testing.assert_close(ours, expected.last_hidden_state, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(prediction, expected.predictor_output.last_hidden_state, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mlp_ratio", [4.0, 48 / 11, 2.7])
def test_native_to_transformers_and_back_is_bit_exact(tmp_path: Path, mlp_ratio: float) -> None:
    encoder, predictor = make_pair(44, 2, mlp_ratio)
    loaded = load_pretrained(save_transformers(encoder, predictor, tmp_path))
    assert loaded.predictor is not None
    for mine, theirs in ((encoder, loaded.encoder), (predictor, loaded.predictor)):
        stored = theirs.state_dict()
        assert mine.state_dict().keys() == stored.keys()
        assert all(torch.equal(tensor, stored[name]) for name, tensor in mine.state_dict().items())
    video = torch.randn(1, 3, 8, 64, 64)
    assert torch.equal(loaded.encoder(video), encoder(video))
    assert (loaded.encoder.config.frames, loaded.encoder.config.crop) == (8, 64)


def test_every_hidden_width_survives_their_rounding() -> None:
    from vjepa.formats.transformers import _exact_ratio

    for width in (6, 44, 192, 384, 1024, 1408, 1664):
        for hidden in range(width, 5 * width, 7):
            ratio = _exact_ratio(width, hidden / width)
            assert int(width * ratio) == hidden
            assert round(width * ratio) == hidden


def test_classifier_folder_gives_its_encoder(tmp_path: Path) -> None:
    config = transformers.VJEPA2Config(
        crop_size=32, frames_per_clip=4, hidden_size=24, num_attention_heads=2, num_hidden_layers=2,
        num_pooler_layers=1, pred_hidden_size=12, pred_num_attention_heads=2, pred_num_hidden_layers=1, num_labels=3,
    )  # fmt: skip
    theirs = transformers.VJEPA2ForVideoClassification(config).eval()
    theirs.save_pretrained(tmp_path)
    loaded = load_pretrained(tmp_path)
    assert loaded.ignored
    assert all(name.startswith(("pooler.", "classifier.")) for name in loaded.ignored)
    video = torch.randn(1, 3, 4, 32, 32)
    with torch.no_grad():
        expected = theirs.vjepa2.get_vision_features(video.transpose(1, 2))
        torch.testing.assert_close(loaded.encoder(video), expected, atol=1e-5, rtol=1e-5)
    assert loaded.predictor is not None
    assert len(loaded.predictor.mask_tokens) == 10


def test_folders_that_do_not_fit_say_why(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_transformers(*make_pair(48, 2), tmp_path)
    whole = load_file(tmp_path / "model.safetensors")
    settings = json.loads((tmp_path / "config.json").read_text())
    name = "encoder.layer.1.attention.key.weight"
    for weights, changed, words in (
        (
            {key: value for key, value in whole.items() if key != name},
            {},
            r"blocks\.1\.attn\.qkv\.weight is \[96, 48\]",
        ),
        ({**whole, "extra.weight": torch.zeros(1)}, {}, r"does not have: extra\.weight"),
        (whole, {"num_hidden_layers": 4}, r"missing blocks\.3\."),
        (whole, {"hidden_act": "silu"}, "hidden_act must be 'gelu', got 'silu'"),
    ):
        save_file(weights, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text(json.dumps({**settings, **changed}))
        with pytest.raises(ValueError, match=words):
            load_pretrained(tmp_path)


def test_sincos_encoder_is_refused_with_the_alternatives() -> None:
    config = EncoderConfig(size="custom", width=24, depth=1, heads=2, frames=4, crop=32)
    with pytest.raises(ValueError, match=r"rotary positions with tiled.*sin-cos.*--format native or onnx"):
        to_transformers(Encoder(config))


def test_processor_settings_are_loaded_by_transformers(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    save_transformers(*make_pair(48, 2), tmp_path)
    processor = transformers.AutoVideoProcessor.from_pretrained(tmp_path)
    pixels = processor(torch.zeros(8, 3, 90, 120, dtype=torch.uint8), return_tensors="pt")["pixel_values_videos"]
    assert pixels.shape == (1, 8, 3, 64, 64)
