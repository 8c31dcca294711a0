"""Native and transformers folders, inflated image ViTs, and loading with the library alone."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from vjepa.encoder import Encoder, EncoderConfig
from vjepa.formats.accounting import fill
from vjepa.formats.loading import is_pretrained, load_encoder, load_pretrained
from vjepa.formats.native import save_encoder
from vjepa.formats.timm import inflate_image_vit
from vjepa.predictor import Predictor, PredictorConfig

TINY = EncoderConfig(size="custom", width=24, depth=2, heads=2, patch=8, frames=4, crop=32)


def equal(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    mine, theirs = first.state_dict(), second.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())


def test_native_folder_keeps_encoder_and_predictor(tmp_path: Path) -> None:
    encoder, predictor = Encoder(TINY), Predictor(PredictorConfig(width=12, depth=1, mask_tokens=2), TINY)
    loaded = load_pretrained(save_encoder(encoder, tmp_path, predictor=predictor))
    assert loaded.predictor is not None
    assert equal(encoder, loaded.encoder)
    assert equal(predictor, loaded.predictor)
    assert loaded.encoder.config == TINY
    assert (tmp_path / "encoder.safetensors").stat().st_mode == (tmp_path / "encoder.json").stat().st_mode
    clip = torch.randn(1, 3, 4, 32, 32)
    assert torch.equal(loaded.encoder(clip), encoder(clip))
    assert load_pretrained(save_encoder(encoder, tmp_path)).predictor is None


def test_loading_draws_no_random_numbers(tmp_path: Path) -> None:
    save_encoder(Encoder(TINY), tmp_path)
    state = torch.get_rng_state()
    load_encoder(tmp_path)
    assert torch.equal(state, torch.get_rng_state())


def test_what_cannot_be_loaded_is_said(tmp_path: Path) -> None:
    for path, words in (
        ("absent", "does not exist"), ("run", "is a run directory; export it"), ("last.ckpt", "export it first"),
        ("notes.txt", "must be a folder or a file ending in"), ("other", "encoder.json is missing"),
        ("bert", "model_type must be 'vjepa2', got 'bert'"),
    ):  # fmt: skip
        if "." in path:
            (tmp_path / path).touch()
        elif path != "absent":
            (tmp_path / path / "checkpoints" if path == "run" else tmp_path / path).mkdir(parents=True)
        if path == "bert":
            (tmp_path / path / "config.json").write_text('{"model_type": "bert"}')
        with pytest.raises((ValueError, FileNotFoundError), match=words):
            load_encoder(tmp_path / path)
    assert not is_pretrained(tmp_path / "run")
    assert not is_pretrained(tmp_path / "last.ckpt")


def test_damaged_native_weights_are_said_so(tmp_path: Path) -> None:
    save_encoder(Encoder(TINY), tmp_path)
    weights = tmp_path / "encoder.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"encoder\.safetensors is damaged"):
        load_encoder(tmp_path)
    description = json.loads((tmp_path / "encoder.json").read_text())
    description["format"] = "something"
    (tmp_path / "encoder.json").write_text(json.dumps(description))
    with pytest.raises(ValueError, match="format must be 'vjepa-encoder-1', got 'something'"):
        load_encoder(tmp_path)


def test_loading_needs_the_library_alone(tmp_path: Path) -> None:
    """No Lightning, no `data`, no transformers: from a folder where only the library can be imported."""
    root = Path(__file__).parent.parent.parent
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "vjepa").symlink_to(root / "vjepa")
    save_encoder(Encoder(TINY), tmp_path / "encoder")
    program = f"""
import sys
sys.path.insert(0, {str(tmp_path / "site")!r})
sys.path[:] = [entry for entry in sys.path if entry not in ("", {str(root)!r})]
import torch, vjepa
encoder = vjepa.load_encoder({str(tmp_path / "encoder")!r})
features = encoder(vjepa.normalise(torch.zeros(1, 4, 32, 32, 3, dtype=torch.uint8)))
assert features.shape == (1, 32, 24), features.shape
loaded = {{"pytorch_lightning", "lightning", "data", "probes", "launch", "transformers"}} & set(sys.modules)
assert not loaded, loaded
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def small_vit(**changes: Any) -> torch.nn.Module:
    settings = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 5}
    return timm.models.VisionTransformer(**{**settings, **changes})


def test_inflated_patches_of_a_still_clip_are_those_of_the_image() -> None:
    image_vit = small_vit().eval()
    loaded = inflate_image_vit(image_vit, frames=4, crop=32)
    picture = torch.randn(1, 3, 32, 32)
    still = loaded.encoder.patch_embed(picture.unsqueeze(2).expand(-1, -1, 4, -1, -1)).detach()
    expected = image_vit.patch_embed(picture).detach()
    torch.testing.assert_close(still, torch.cat([expected, expected], dim=1), atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(loaded.encoder.blocks, image_vit.blocks, strict=True):
        assert equal(ours, theirs)
    assert loaded.ignored.keys() == {"cls_token", "pos_embed", "head.weight", "head.bias"}


def test_layer_scale_is_folded_and_changes_nothing() -> None:
    image_vit = small_vit(init_values=0.3, class_token=False, global_pool="").eval()
    for block in image_vit.blocks:
        torch.nn.init.uniform_(block.ls1.gamma)
        torch.nn.init.uniform_(block.ls2.gamma)
    loaded = inflate_image_vit(image_vit, frames=2, crop=32)
    tokens = torch.randn(1, 16, 24)
    with torch.no_grad():
        expected, found = tokens, tokens
        for ours, theirs in zip(loaded.encoder.blocks, image_vit.blocks, strict=True):
            expected, found = theirs(expected), ours(found, None)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert "layer scale folded into the projections before it" in loaded.assumed


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"qk_norm": True}, r"unknown blocks\.0\.attn\.k_norm"),
        ({"pre_norm": True}, r"unknown norm_pre"),
        ({"act_layer": torch.nn.SiLU}, "activation must be GELU"),
        ({"norm_layer": torch.nn.LayerNorm}, "epsilon 1e-6, got 1e-05"),
        ({"qkv_bias": False}, r"missing blocks\.0\.attn\.qkv\.bias"),
    ],
)
def test_image_vits_that_compute_something_else_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        inflate_image_vit(small_vit(**changes), crop=32)
    with pytest.raises(ValueError, match="must be a VisionTransformer with blocks, got Linear"):
        inflate_image_vit(torch.nn.Linear(1, 1))


def test_integer_weights_are_called_integers_and_damaged_ones_not_finite() -> None:
    layer = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"file: bias holds int8 where floating-point weights are needed"):
        fill(layer, {"weight": torch.zeros(2, 2), "bias": torch.zeros(2, dtype=torch.int8)}, "file")
    with pytest.raises(ValueError, match=r"file: bias .* not finite"):
        fill(layer, {"weight": torch.zeros(2, 2), "bias": torch.full((2,), torch.nan)}, "file")
