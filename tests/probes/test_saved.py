"""Trained heads come back from their files as they were, and for their encoder alone."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from probes.heads import AttentiveHead, LinearHead, standardise_tokens
from probes.saved import SavedHead, load_attentive, load_linear, save_head

CLASSES = ("left", "right", "up")


def make_attentive() -> AttentiveHead:
    torch.manual_seed(0)
    head = AttentiveHead(24, 2, 3)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return head


def test_saved_heads_give_the_same_logits(tmp_path: Path) -> None:
    attentive, linear = make_attentive(), LinearHead(24, 3)
    tokens = torch.randn(5, 7, 24)
    linear.measure(tokens.mean(1))
    torch.nn.init.normal_(linear.linear.weight)
    save_head(SavedHead(attentive, CLASSES, "runs/a", "0123"), tmp_path)
    save_head(SavedHead(linear, CLASSES, "runs/a", "0123"), tmp_path)
    (tmp_path / "results.json").write_text("{}")
    for path in (tmp_path, tmp_path / "results.json"):
        found = load_attentive(path)
        assert torch.equal(found.head(standardise_tokens(tokens)), attentive(standardise_tokens(tokens)))
        assert torch.equal(load_linear(path).head(tokens.mean(1)), linear(tokens.mean(1)))
        assert (found.classes, found.encoder, found.encoder_hash) == (CLASSES, "runs/a", "0123")


def test_pooled_vector_is_what_the_classifier_sees() -> None:
    head, tokens = make_attentive(), standardise_tokens(torch.randn(5, 7, 24))
    assert head.pool(tokens).shape == (5, 24)
    torch.testing.assert_close(head.linear(head.pool(tokens)), head(tokens))


def test_head_is_for_its_own_encoder_alone(tmp_path: Path) -> None:
    save_head(SavedHead(make_attentive(), CLASSES, "runs/a", "0123"), tmp_path)
    saved = load_attentive(tmp_path)
    saved.check_encoder(24, "0123")
    with pytest.raises(ValueError, match=r"takes features of width 24, the encoder makes 32; .* trained on runs/a"):
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
    description = {"kind": "attentive", "width": 24, "heads": 2, "epsilon": 1e-5, "classes": CLASSES}
    save_file(weights, file, {"format": "vjepa-head-1", "head": json.dumps(description)})
    with pytest.raises(ValueError, match="epsilon must be"):
        load_attentive(tmp_path)
    with pytest.raises(ValueError, match="classes must name each of the 3 outputs, got 2"):
        SavedHead(make_attentive(), CLASSES[:2], "runs/a", "0123")
