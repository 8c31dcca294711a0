"""Exports go up to the hub and come down again: a stand-in on loopback takes the hub's place."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import vjepa
from launch.__main__ import main
from launch.exchange.card import CardConfig
from launch.exchange.encoders import Origin
from launch.exchange.export import export_origin
from vjepa.formats.accounting import Pretrained

pytest.importorskip("huggingface_hub")


def load_stand_in() -> ModuleType:
    spec = importlib.util.spec_from_file_location("stand_in_hub", Path(__file__).parents[1] / "vjepa" / "hub.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, dict[str, bytes]]]:
    with load_stand_in().serve_hub() as (address, repositories):
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("huggingface_hub._snapshot_download.HF_HUB_CACHE", str(tmp_path / "cache"), raising=False)
        yield repositories


def export(folder: Path, kind: str = "native", licence: str = "") -> vjepa.Encoder:
    config = vjepa.EncoderConfig(
        size="custom", width=24, depth=1, heads=2, patch=8, frames=4, crop=32, positions="rotary", rotary_order="tiled"
    )
    torch.manual_seed(0)
    encoder = vjepa.Encoder(config).eval()
    export_origin(Origin(Pretrained(encoder, None, "a test")), folder, kind, card=CardConfig(licence), picture=True)
    return encoder


@pytest.mark.parametrize("kind", ["native", "transformers"])
def test_an_export_goes_up_and_comes_down_the_same(
    hub: dict[str, dict[str, bytes]], tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    encoder = export(tmp_path / "encoder", kind, "apache-2.0")
    assert main(["push", str(tmp_path / "encoder"), "me/motions"]) == 0, capsys.readouterr().err
    assert 'vjepa.load_encoder("hf://me/motions")' in capsys.readouterr().out
    card = hub["me/motions"]["README.md"].decode()
    assert card.startswith("---\nlicense: apache-2.0\n")
    assert "![" in card
    assert hub["me/motions"]["features.png"].startswith(b"\x89PNG")
    again = vjepa.load_encoder("hf://me/motions")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in encoder.state_dict().items())


def test_weights_without_a_licence_stay_here(
    hub: dict[str, dict[str, bytes]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export(tmp_path / "encoder")
    assert main(["push", str(tmp_path / "encoder"), "me/motions"]) == 2
    assert "states no licence for the weights: give --licence" in capsys.readouterr().err
    assert not hub
    assert main(["push", str(tmp_path / "encoder"), "me/motions", "--licence", "mit"]) == 0
    card = hub["me/motions"]["README.md"].decode()
    assert "license: mit" in card
    assert "- licence: mit" in card


def test_what_the_hub_does_not_have_is_named(hub: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(OSError, match=r"hf://me/missing cannot be downloaded: .*404"):
        vjepa.load_encoder("hf://me/missing")
    with pytest.raises(ValueError, match="must be hf://OWNER/NAME"):
        vjepa.load_encoder("hf://missing")
    (tmp_path / "empty").mkdir()
    assert main(["push", str(tmp_path / "empty"), "me/motions"]) == 2
    assert "is not an exported folder" in capsys.readouterr().err


def test_a_hub_out_of_reach_is_an_error_of_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    export(tmp_path / "encoder", licence="mit")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    assert main(["push", str(tmp_path / "encoder"), "me/motions"]) == 2
    assert "me/motions cannot be uploaded" in capsys.readouterr().err
    with pytest.raises(OSError, match="hf://me/unheard-of cannot be downloaded"):
        vjepa.load_encoder("hf://me/unheard-of")


def test_a_name_of_the_hub_without_its_prefix_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r'say so: "hf://facebook/vjepa2-vitl-fpc64-256"'):
        vjepa.load_encoder("facebook/vjepa2-vitl-fpc64-256")
    with pytest.raises(FileNotFoundError, match="official checkpoint$"):
        vjepa.load_encoder("runs/deep/down/encoder")
