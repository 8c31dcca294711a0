"""docs/formats.md works: its commands and snippets run, in their order, in an empty folder."""

import re
import shlex
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from data.generated.sprites import SyntheticConfig, render_clip
from data.generated.videos import encode_clip
from launch.__main__ import main
from launch.exchange.encoders import hash_weights
from probes.heads import AttentiveHead
from probes.saved import SavedHead, save_head
from vjepa.encoder import EncoderConfig
from vjepa.jepa import JEPA, JepaConfig
from vjepa.predictor import PredictorConfig

PAGE = Path(__file__).parent.parent.parent / "docs" / "formats.md"


def make_run(folder: Path, probe: Path) -> None:
    """A run directory with an untrained encoder that every format can hold, and a probe of it."""
    encoder = EncoderConfig(
        size="custom", width=24, depth=2, heads=2, frames=4, crop=32, positions="rotary", rotary_order="tiled"
    )
    config = JepaConfig(encoder=encoder, predictor=PredictorConfig(width=12, depth=1))
    model = JEPA(config)
    (folder / "checkpoints").mkdir(parents=True)
    stored = {"config": asdict(config), "state_dict": model.state_dict(), "position": 0}
    torch.save(stored, folder / "checkpoints" / "step-0000000.ckpt")
    digest = hash_weights(model.target_encoder.encoder)
    save_head(SavedHead(AttentiveHead(24, 2, 3), ("left", "right", "up"), str(folder), digest), probe)


def test_commands_and_snippets_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("transformers", "onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(name)
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "runs" / "demo" / "run", tmp_path / "runs" / "demo" / "probe")
    (tmp_path / "videos").mkdir()
    for name, frames in (("long", 14), ("short", 3)):
        clip = render_clip(0, 0, SyntheticConfig(size=64, frames=frames))
        encode_clip(clip, tmp_path / "videos" / f"{name}.mp4", fps=10, crf=20)
    blocks = re.findall(r"^```(\w+)\n(.*?)^```", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)
    assert [kind for kind, _ in blocks].count("python") == 8
    for kind, text in blocks:
        if kind == "bash":
            for line in text.strip().splitlines():
                words = shlex.split(line)
                assert words[0] == "vjepa"
                assert main(words[1:]) == 0, line
        else:
            # The weights of timm's models are far away; the same model without them is enough here.
            exec(compile(text.replace("pretrained=True", "pretrained=False"), str(PAGE), "exec"), {})
