"""`python -m launch probe` leaves the heads it chose, and they say what it measured."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data.loader import DataConfig, EvalLoader
from data.pack import PackConfig, pack
from data.synthetic import SyntheticConfig, write_videos
from launch.encoders import hash_weights
from launch.probe import ProbeConfig, probe
from probes.evaluate import HeadsConfig
from probes.features import FrozenEncoder, extract
from probes.fit import AttentiveConfig, attentive_probabilities
from probes.saved import load_attentive, load_linear
from vjepa.formats.loading import load_encoder
from vjepa.formats.native import save_encoder
from vjepa.vit import Encoder, EncoderConfig


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ProbeConfig:
    """A probe of an untrained encoder on 24 clips."""
    folder = tmp_path_factory.mktemp("probe")
    write_videos(folder / "videos", 24, 0, SyntheticConfig(size=32, frames=4))
    pack(str(folder / "videos"), str(folder / "shards"), PackConfig())
    torch.manual_seed(0)
    encoder = Encoder(EncoderConfig(size="custom", width=24, depth=1, heads=3, frames=4, crop=32))
    save_encoder(encoder, folder / "encoder")
    return ProbeConfig(
        encoder=str(folder / "encoder"),
        train=str(folder / "shards"),
        test=str(folder / "shards"),
        data=DataConfig(stride=1, workers=0),
        heads=HeadsConfig(attentive=AttentiveConfig(lrs=(1e-2,), weight_decays=(0.01,), epochs=2)),
        baselines=("random",),
        output=str(folder / "out"),
    )


def test_saved_heads_are_those_of_the_encoder_that_were_measured(config: ProbeConfig) -> None:
    measured = {(result.features, result.head): result.score.top1 for result in probe(config)}
    folder = Path(config.output)
    encoder = load_encoder(config.encoder)
    saved, linear = load_attentive(folder), load_linear(folder / "results.json")
    assert list(saved.classes) == json.loads((folder / "results.json").read_text())["classes"]
    assert saved.encoder == config.encoder
    assert saved.head.heads == 3, "as many as the encoder"
    saved.check_encoder(24, hash_weights(encoder))
    loader = EvalLoader(replace(config.data, path=config.test, frames=4, crop=32), config.batch)
    features = extract({"encoder": FrozenEncoder(encoder)}, loader)["encoder"]
    attentive = attentive_probabilities(saved.head, features.tokens).argmax(1)
    assert float((attentive == features.labels).float().mean()) == pytest.approx(measured["encoder", "attentive"])
    pooled = linear.head(features.pooled[:, 0]).argmax(1)
    assert float((pooled == features.labels).float().mean()) == pytest.approx(measured["encoder", "linear"])


def test_heads_of_an_earlier_probe_do_not_stay(config: ProbeConfig, tmp_path: Path) -> None:
    (tmp_path / "attentive.safetensors").write_bytes(b"old")
    probe(replace(config, heads=HeadsConfig(names=("linear", "knn")), baselines=(), output=str(tmp_path)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["linear.safetensors", "results.json"]
