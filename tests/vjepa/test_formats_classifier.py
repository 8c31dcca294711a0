"""An attentive probe as transformers' classifier: every tensor has its place, and what does not fit is refused."""

import json
from pathlib import Path

import pytest
import torch

from vjepa.encoder import Encoder, EncoderConfig
from vjepa.formats.classifier import read_classifier, save_classifier, to_classifier
from vjepa.formats.loading import load_pretrained
from vjepa.formats.transformers import save_model, save_transformers

pytest.importorskip("transformers")

WIDTH = 24


def make_encoder() -> Encoder:
    config = EncoderConfig(
        size="custom", width=WIDTH, depth=1, heads=2, frames=4, crop=32, positions="rotary", rotary_order="tiled"
    )
    return Encoder(config).eval()


def make_head(classes: int = 3, blocks: int = 0) -> dict[str, torch.Tensor]:
    shapes = {
        "query_tokens": (1, 1, WIDTH), "q.weight": (WIDTH, WIDTH), "q.bias": (WIDTH,),
        "kv.weight": (2 * WIDTH, WIDTH), "kv.bias": (2 * WIDTH,),
        "norm1.weight": (WIDTH,), "norm1.bias": (WIDTH,), "norm2.weight": (WIDTH,), "norm2.bias": (WIDTH,),
        "mlp.fc1.weight": (4 * WIDTH, WIDTH), "mlp.fc1.bias": (4 * WIDTH,),
        "mlp.fc2.weight": (WIDTH, 4 * WIDTH), "mlp.fc2.bias": (WIDTH,),
        "linear.weight": (classes, WIDTH), "linear.bias": (classes,),
    }  # fmt: skip
    for number in range(blocks):
        shapes |= {
            f"blocks.{number}.norm1.weight": (WIDTH,), f"blocks.{number}.norm1.bias": (WIDTH,),
            f"blocks.{number}.attn.qkv.weight": (3 * WIDTH, WIDTH), f"blocks.{number}.attn.qkv.bias": (3 * WIDTH,),
            f"blocks.{number}.attn.proj.weight": (WIDTH, WIDTH), f"blocks.{number}.attn.proj.bias": (WIDTH,),
            f"blocks.{number}.norm2.weight": (WIDTH,), f"blocks.{number}.norm2.bias": (WIDTH,),
            f"blocks.{number}.mlp.fc1.weight": (4 * WIDTH, WIDTH), f"blocks.{number}.mlp.fc1.bias": (4 * WIDTH,),
            f"blocks.{number}.mlp.fc2.weight": (WIDTH, 4 * WIDTH), f"blocks.{number}.mlp.fc2.bias": (WIDTH,),
        }  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    return {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def test_classifier_is_norm_attend_add_norm_mlp_add_classify() -> None:
    """Written out with plain functions on the encoder's features."""
    encoder, head = make_encoder(), make_head()
    theirs = to_classifier(encoder, None, head, 2, ["a", "b", "c"]).eval()
    video = torch.randn(2, 3, 4, 32, 32)
    functional = torch.nn.functional
    with torch.no_grad():
        found = theirs(video.transpose(1, 2)).logits
        tokens = functional.layer_norm(encoder(video), (WIDTH,), head["norm1.weight"], head["norm1.bias"], 1e-6)
        key, value = functional.linear(tokens, head["kv.weight"], head["kv.bias"]).chunk(2, -1)
        query = head["query_tokens"].expand(2, 1, WIDTH)
        asked = functional.linear(query, head["q.weight"], head["q.bias"])
        parts = [part.unflatten(-1, (2, WIDTH // 2)).transpose(1, 2) for part in (asked, key, value)]
        pooled = query + functional.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)
        normed = functional.layer_norm(pooled, (WIDTH,), head["norm2.weight"], head["norm2.bias"], 1e-6)
        hidden = functional.gelu(functional.linear(normed, head["mlp.fc1.weight"], head["mlp.fc1.bias"]))
        pooled = pooled + functional.linear(hidden, head["mlp.fc2.weight"], head["mlp.fc2.bias"])
        expected = functional.linear(pooled[:, 0], head["linear.weight"], head["linear.bias"])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_encoder_of_a_classifier_is_read_back_exactly(tmp_path: Path) -> None:
    encoder = make_encoder()
    folder = save_model(to_classifier(encoder, None, make_head(), 2, ["a", "b", "c"]), encoder.config, tmp_path)
    found = load_pretrained(folder)
    assert all(torch.equal(value, found.encoder.state_dict()[name]) for name, value in encoder.state_dict().items())
    assert found.ignored["classifier.weight"] == "head of the classifier"


@pytest.mark.parametrize("blocks", [0, 3])
def test_head_of_a_classifier_is_read_back_exactly(blocks: int, tmp_path: Path) -> None:
    encoder, head = make_encoder(), make_head(blocks=blocks)
    folder = save_classifier(encoder, None, head, 2, ["a", "b", "c"], tmp_path)
    settings = json.loads((folder / "config.json").read_text())
    assert settings["num_pooler_layers"] == blocks
    found, heads, classes = read_classifier(folder)
    assert (heads, classes) == (2, ["a", "b", "c"])
    assert found.keys() == head.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in head.items())


def test_every_tensor_of_transformers_own_classifier_has_a_place(tmp_path: Path) -> None:
    """Written by transformers alone, from its own names: as many numbers come out as went in."""
    from transformers import VJEPA2Config, VJEPA2ForVideoClassification

    settings = VJEPA2Config(
        patch_size=16, crop_size=32, frames_per_clip=4, hidden_size=WIDTH, num_attention_heads=2, num_hidden_layers=1,
        pred_hidden_size=12, pred_num_attention_heads=1, pred_num_hidden_layers=1, num_pooler_layers=3, num_labels=5,
    )  # fmt: skip
    theirs = VJEPA2ForVideoClassification(settings)
    theirs.save_pretrained(tmp_path)
    found, _, classes = read_classifier(tmp_path)
    assert len(classes) == 5
    parts = [*theirs.pooler.parameters(), *theirs.classifier.parameters()]
    assert sum(tensor.numel() for tensor in found.values()) == sum(part.numel() for part in parts)
    assert found.keys() == make_head(blocks=3).keys()


def test_folder_without_a_classifier_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="without a classifier"):
        read_classifier(save_transformers(make_encoder(), None, tmp_path))


def test_head_that_does_not_fit_is_refused() -> None:
    encoder, head = make_encoder(), make_head()
    with pytest.raises(ValueError, match=r"the probe has 4; probe with heads.attentive.heads=2"):
        to_classifier(encoder, None, head, 4, ["a", "b", "c"])
    with pytest.raises(ValueError, match="class names must differ"):
        to_classifier(encoder, None, head, 2, ["a", "b", "a"])
    with pytest.raises(ValueError, match="its classifier does not fit the model"):
        to_classifier(encoder, None, head, 2, ["a", "b"])
    del head["kv.bias"]
    with pytest.raises(ValueError, match="the attentive head does not fit the model: missing"):
        to_classifier(encoder, None, head, 2, ["a", "b", "c"])
