"""Every format is loaded again by the library it is for and compared; what cannot be written is refused."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from launch.__main__ import main
from launch.exchange.card import CardConfig, write_card
from launch.exchange.encoders import Origin, hash_weights
from launch.exchange.export import FORMATS, TOLERANCE, export_origin, generate_clips
from probes.heads import AttentiveHead
from probes.saved import SavedHead, save_head
from vjepa.encoder import Encoder, EncoderConfig
from vjepa.formats.accounting import Pretrained
from vjepa.formats.loading import load_pretrained
from vjepa.formats.meta import save_meta
from vjepa.formats.native import save_encoder
from vjepa.pixels import normalise
from vjepa.predictor import Predictor, PredictorConfig

NEEDS = {"transformers": ["transformers"], "onnx": ["onnx", "onnxruntime", "onnxscript"]}


def make_origin(positions: Any = "rotary", order: Any = "tiled") -> Origin:
    config = EncoderConfig(
        size="custom", width=24, depth=2, heads=2, patch=16, frames=4, crop=48, positions=positions, rotary_order=order
    )
    predictor = Predictor(PredictorConfig(width=12, depth=1, mask_tokens=2), config)
    generator = torch.Generator().manual_seed(0)
    encoder = Encoder(config)
    for module in (encoder, predictor):
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return Origin(Pretrained(encoder.eval(), predictor.eval(), "a test"), {"steps": 7, "clips": 56})


@pytest.mark.parametrize("kind", FORMATS)
def test_export_is_the_same_encoder_and_its_card_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    for name in NEEDS.get(kind, []):
        pytest.importorskip(name)
    difference = export_origin(make_origin(), tmp_path / "out", kind)
    assert difference <= (0 if kind in ("native", "meta") else TOLERANCE)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "steps planned: 7" in card
    assert "licence: not stated" in card
    assert "Probes" not in card
    monkeypatch.chdir(tmp_path)
    clips = torch.randint(0, 256, (2, 4, 48, 48, 3), dtype=torch.uint8)
    video = normalise(clips)
    shaped = {"onnx": video.numpy(), "transformers": video.transpose(1, 2)}
    names: dict[str, Any] = {"clips": clips, "video": shaped.get(kind, video)}
    exec(re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)[0], names)
    if kind == "meta":
        assert "module.backbone.norm.weight" in names["weights"]
    else:
        assert tuple(names["features"].shape) == (2, 18, 24)


def test_sincos_encoder_goes_to_every_format_but_transformers(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    origin = make_origin("sincos")
    for kind in ("native", "meta", "program"):
        assert export_origin(origin, tmp_path / kind, kind) <= TOLERANCE
    with pytest.raises(ValueError, match="transformers supports only rotary positions"):
        export_origin(origin, tmp_path / "hf", "transformers", picture=True)
    assert not (tmp_path / "hf").exists()


def test_onnx_takes_any_number_of_clips(tmp_path: Path) -> None:
    for name in NEEDS["onnx"]:
        pytest.importorskip(name)
    import onnxruntime

    origin = make_origin("sincos")
    export_origin(origin, tmp_path, "onnx")
    session = onnxruntime.InferenceSession(tmp_path / "encoder.onnx", providers=["CPUExecutionProvider"])
    for count in (1, 2, 5):
        video = torch.randn(count, 3, 4, 48, 48)
        with torch.no_grad():
            expected = origin.pretrained.encoder(video)
        found = torch.from_numpy(session.run(None, {"video": video.numpy()})[0])
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_export_that_differs_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def save_altered(encoder: Encoder, folder: Path, *others: Any) -> Path:
        other = Encoder(encoder.config)
        other.load_state_dict(encoder.state_dict())
        torch.nn.init.constant_(other.norm.bias, 0.5)
        return save_encoder(other, folder, *others)

    monkeypatch.setattr("launch.exchange.formats.save_encoder", save_altered)
    with pytest.raises(ValueError, match=r"the reloaded encoder differs by .*; do not use it"):
        export_origin(make_origin(), tmp_path, "native")


def test_official_checkpoint_is_exported_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    origin = make_origin()
    path = save_meta(origin.pretrained.encoder, origin.pretrained.predictor, tmp_path)
    words = ["export", str(path), str(tmp_path / "hf"), "--format", "transformers", "--no-picture"]
    assert main(words) == 2
    assert "holds encoder, target_encoder: say which" in capsys.readouterr().err
    assert main([*words, "--weights", "target"]) == 2
    assert "--weights target is for runs" in capsys.readouterr().err
    assert main([*words, "--weights", "target_encoder"]) == 0
    shown = capsys.readouterr().out
    assert "ignored: encoder (another encoder, target_encoder was requested)" in shown
    loaded = load_pretrained(tmp_path / "hf")
    assert torch.equal(loaded.encoder.norm.bias, origin.pretrained.encoder.norm.bias)


INTERVALS = {"wilson": {"top1": [0.4, 0.6], "top5": [0.9, 1.0]}, "bootstrap": {"mean_class": [0.4, 0.6]}}


def save_probe(folder: Path, encoder: Encoder, heads: int = 2, depth: int = 1) -> AttentiveHead:
    """A probe's folder with a random head of three classes, and one row of results."""
    torch.manual_seed(0)
    head = AttentiveHead(encoder.config.width, heads, 3, depth)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    save_head(SavedHead(head, ("left", "right", "up"), "a test", hash_weights(encoder)), folder)
    row = {
        "features": "encoder", "head": "attentive", "top1": 0.5, "top5": 1.0, "mean_class": 0.5, "low": 0.4,
        "high": 0.6, "samples": 200, "missing": 0, **INTERVALS,
    }  # fmt: skip
    document = {
        "format": "vjepa-probe-2", "task": "classification", "classes": ["left", "right", "up"], "missing": {},
        "results": [row], "config": {},
    }  # fmt: skip
    (folder / "results.json").write_text(json.dumps(document))
    return head


@pytest.mark.parametrize(("depth", "kind"), [(1, "attentive"), (4, "attentive4")])
def test_classifier_for_transformers_gives_our_logits(
    depth: int, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    transformers = pytest.importorskip("transformers")
    origin = make_origin()
    encoder = origin.pretrained.encoder
    native = save_encoder(encoder, tmp_path / "native", {}, origin.pretrained.predictor)
    head = save_probe(tmp_path / "probe", encoder, depth=depth)
    words = ["export", str(native), str(tmp_path / "out"), "--format", "transformers", "--no-picture"]
    assert main([*words, "--probe", str(tmp_path / "probe" / "results.json")]) == 0
    assert f"with an {kind} head of 3 classes: left, right, up" in capsys.readouterr().out
    model = transformers.AutoModelForVideoClassification.from_pretrained(tmp_path / "out").eval()
    video = torch.randn(2, 3, 4, 48, 48)
    with torch.no_grad():
        expected = head(encoder(video))
        torch.testing.assert_close(model(video.transpose(1, 2)).logits, expected, atol=1e-4, rtol=1e-4)
        features = transformers.AutoModel.from_pretrained(tmp_path / "out").get_vision_features(video.transpose(1, 2))
        torch.testing.assert_close(features, encoder(video), atol=1e-4, rtol=1e-4)
    assert model.config.id2label == {0: "left", 1: "right", 2: "up"}
    assert model.config.label2id == {"left": 0, "right": 1, "up": 2}
    card = (tmp_path / "out" / "README.md").read_text()
    for part in ("- video-classification", "| encoder | attentive | 50.0 |", "predictor: included", "left, right, up"):
        assert part in card, part
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"video": video.transpose(1, 2)}
    exec(re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)[0], names)
    assert tuple(names["logits"].shape) == (2, 3)


def test_altered_classifier_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    origin = make_origin()
    head = save_probe(tmp_path / "probe", origin.pretrained.encoder)
    saved = SavedHead(head, ("left", "right", "up"), "a test", "")
    assert export_origin(origin, tmp_path / "out", "transformers", head=saved) <= TOLERANCE
    altered = {**head.state_dict(), "norm1.bias": head.norm1.bias + 1}
    monkeypatch.setattr(head, "state_dict", lambda: altered)
    with pytest.raises(ValueError, match=r"the reloaded encoder differs by .*; do not use it"):
        export_origin(origin, tmp_path / "out", "transformers", head=saved)


def test_probe_that_does_not_belong_to_the_encoder_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers")
    encoder = make_origin().pretrained.encoder
    native = save_encoder(encoder, tmp_path / "native")
    other = Encoder(encoder.config)
    narrow = Encoder(replace(encoder.config, width=12))
    for name, trained_on in (("own", encoder), ("other", other), ("narrow", narrow)):
        save_probe(tmp_path / name, trained_on)
    save_probe(tmp_path / "heads", encoder, heads=4)
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "results.json").write_text((tmp_path / "own" / "results.json").read_text())
    words = ["export", str(native), str(tmp_path / "out"), "--no-picture", "--probe"]
    for name, format, message in (
        ("bare", "transformers", "holds no saved attentive head"),
        ("other", "transformers", "trained on the features of another encoder"),
        ("narrow", "transformers", "takes features of width 12, but the encoder has width 24"),
        ("heads", "transformers", "probe with heads.attentive.heads=2"),
        ("own", "onnx", "--probe requires --format transformers, got --format onnx"),
    ):
        assert main([*words, str(tmp_path / name), "--format", format]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_card_holds_what_was_given_and_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    score = {"samples": 200, "classes": 4, "top1": 0.5, "low": 0.43, "high": 0.57, "top5": 1.0, "mean_class": 0.5}
    score |= {"missing": 0, **INTERVALS}
    rows = [{"features": "encoder", "head": "linear", **score}]
    results = tmp_path / "results.json"
    document = {"task": "classification", "classes": list("abcd"), "missing": {}, "results": rows, "config": {}}
    results.write_text(json.dumps({"format": "vjepa-probe-2", **document}))
    native = save_encoder(make_origin().pretrained.encoder, tmp_path / "native")
    words = ["export", str(native), str(tmp_path / "out"), "--licence", "apache-2.0", "--data", "moving things"]
    assert main([*words, "--results", str(tmp_path / "absent.json")]) == 2
    assert "there is no file" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*words, "--results", str(results)]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    for part in (
        "license: apache-2.0", "data: moving things", "| encoder | linear | 50.0 | 43.0 to 57.0 | 200 |",
        "2 blocks of width 24, 2 heads", "4 frames of 48 x 48 pixels = 2 x 3 x 3 tokens", "features.png",
        "predictor: not included", "largest difference 0.0e+00",
    ):  # fmt: skip
        assert part in card, part
    assert (tmp_path / "out" / "features.png").stat().st_size > 1000


def test_card_of_a_run_shows_its_config_and_gauges(tmp_path: Path) -> None:
    origin = make_origin()
    facts = {**origin.facts, "gauges": "spread 0.8", "config": "run:\n  steps: 7\n"}
    card = write_card(tmp_path, "native", Origin(origin.pretrained, facts), 0.0, CardConfig()).read_text()
    assert "last gauge readings: spread 0.8" in card
    assert "```yaml\nrun:\n  steps: 7\n```" in card


def test_generated_clips_have_the_size_of_the_encoder() -> None:
    for frames, crop in ((1, 16), (4, 48), (6, 45)):
        config = EncoderConfig(
            size="custom", width=24, depth=1, heads=2, patch=crop // 3, tubelet=1, frames=frames, crop=crop // 3 * 3
        )
        clips = generate_clips(config, 2)
        assert clips.shape == (2, frames, config.crop, config.crop, 3)
        assert clips.dtype == torch.uint8
