"""Trained heads come back from their files as they were, and for their encoder alone."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from probes.heads import AttentiveHead, LinearHead
from probes.saved import VALUE, SavedHead, load_attentive, load_classifier, load_linear, save_head, save_heads
from vjepa.encoder import Encoder, EncoderConfig
from vjepa.formats.classifier import save_classifier
from vjepa.formats.loading import load_encoder
from vjepa.pixels import normalise

CLASSES = ("left", "right", "up")


def make_attentive(depth: int = 1, classes: int = 3) -> AttentiveHead:
    torch.manual_seed(0)
    head = AttentiveHead(24, 2, classes, depth)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return head


@pytest.mark.parametrize("depth", [1, 4])
def test_saved_heads_give_the_same_logits(depth: int, tmp_path: Path) -> None:
    attentive, linear = make_attentive(depth).requires_grad_(False), LinearHead(24, 3)
    tokens = torch.randn(5, 7, 24)
    linear.measure(tokens.mean(1))
    torch.nn.init.normal_(linear.linear.weight)
    save_head(SavedHead(attentive, CLASSES, "runs/a", "0123"), tmp_path)
    save_head(SavedHead(linear, CLASSES, "runs/a", "0123"), tmp_path)
    (tmp_path / "results.json").write_text("{}")
    for path in (tmp_path, tmp_path / "results.json"):
        found = load_attentive(path)
        assert torch.equal(found.head(tokens), attentive(tokens))
        assert torch.equal(load_linear(path).head(tokens.mean(1)), linear(tokens.mean(1)))
        assert (found.classes, found.encoder, found.encoder_hash) == (CLASSES, "runs/a", "0123")


def test_pooled_vector_is_what_the_classifier_sees() -> None:
    head, tokens = make_attentive(), torch.randn(5, 7, 24)
    assert head.pool(tokens).shape == (5, 24)
    torch.testing.assert_close(head.linear(head.pool(tokens)), head(tokens))


def test_of_two_depths_each_is_found_by_its_file(tmp_path: Path) -> None:
    trained = [make_attentive(4), None, make_attentive(1), LinearHead(24, 3)]
    save_heads(trained, tmp_path, CLASSES, "runs/a", "0123")
    assert load_attentive(tmp_path).head.depth == 1
    assert load_attentive(tmp_path / "attentive4.safetensors").head.depth == 4
    with pytest.raises(ValueError, match="must hold a head of kind attentive or attentive4, got linear"):
        load_attentive(tmp_path / "linear.safetensors")
    save_heads([make_attentive(4)], tmp_path, CLASSES, "runs/a", "0123")
    assert [path.name for path in tmp_path.iterdir()] == ["attentive4.safetensors"], "earlier heads do not stay"
    assert load_attentive(tmp_path).head.depth == 4


def test_head_of_values_has_one_output(tmp_path: Path) -> None:
    save_heads([make_attentive(1, 1)], tmp_path, (), "runs/a", "0123")
    assert load_attentive(tmp_path).classes == VALUE


@pytest.mark.parametrize("depth", [1, 4])
def test_head_gives_the_logits_of_transformers_classifier(depth: int, tmp_path: Path) -> None:
    """Theirs with random weights, read without their library; and ours written for it."""
    transformers = pytest.importorskip("transformers")
    settings = transformers.VJEPA2Config(
        patch_size=16, crop_size=32, frames_per_clip=4, hidden_size=24, num_attention_heads=2, num_hidden_layers=1,
        pred_hidden_size=12, pred_num_attention_heads=1, pred_num_hidden_layers=1, num_pooler_layers=depth - 1,
        num_labels=5,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = transformers.VJEPA2ForVideoClassification(settings).eval()
    for parameter in theirs.pooler.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    theirs.save_pretrained(tmp_path / "theirs")
    head, encoder = load_classifier(tmp_path / "theirs").head, load_encoder(tmp_path / "theirs")
    clips = torch.randint(256, (3, 4, 32, 32, 3), dtype=torch.uint8)
    assert head.depth == depth
    with torch.no_grad():
        expected = theirs(normalise(clips).transpose(1, 2)).logits
        torch.testing.assert_close(head(encoder(normalise(clips))), expected, atol=2e-5, rtol=1e-4)

    ours = Encoder(
        EncoderConfig(
            size="custom", width=24, depth=1, heads=2, frames=4, crop=32, positions="rotary", rotary_order="tiled"
        )
    ).eval()
    trained = make_attentive(depth)
    folder = save_classifier(ours, None, trained.state_dict(), trained.heads, CLASSES, tmp_path / "ours")
    written = transformers.AutoModelForVideoClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        found = written(normalise(clips).transpose(1, 2)).logits
        torch.testing.assert_close(found, trained(ours(normalise(clips))), atol=2e-5, rtol=1e-4)


def test_head_is_for_its_own_encoder_alone(tmp_path: Path) -> None:
    save_head(SavedHead(make_attentive(), CLASSES, "runs/a", "0123"), tmp_path)
    saved = load_attentive(tmp_path)
    saved.check_encoder(24, "0123")
    with pytest.raises(
        ValueError, match=r"takes features of width 24, but the encoder has width 32; .* trained on runs/a"
    ):
        saved.check_encoder(32, "0123")
    with pytest.raises(ValueError, match="features of another encoder"):
        saved.check_encoder(24, "4567")


def test_absent_and_damaged_heads_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no saved attentive head"):
        load_attentive(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"absent.json holds no saved attentive head"):
        load_attentive(tmp_path / "absent.json")
    file = save_head(SavedHead(make_attentive(), CLASSES, "runs/a", "0123"), tmp_path)
    weights, whole = load_file(file), file.read_bytes()
    file.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match="is damaged"):
        load_attentive(tmp_path)
    save_file(weights, file)
    with pytest.raises(ValueError, match="format must be 'vjepa-head-1', got None"):
        load_attentive(tmp_path)
    description = {"kind": "attentive", "width": 24, "heads": 2, "epsilon": 1e-4, "classes": CLASSES}
    save_file(weights, file, {"format": "vjepa-head-1", "head": json.dumps(description)})
    with pytest.raises(ValueError, match="epsilon must be"):
        load_attentive(tmp_path)
    with pytest.raises(ValueError, match="classes must name each of the 3 outputs, got 2"):
        SavedHead(make_attentive(), CLASSES[:2], "runs/a", "0123")
