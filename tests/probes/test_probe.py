"""`vjepa probe`: the same numbers whoever computed the features, and heads that say what was measured."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from data.files import InUseError, claim_folder
from data.loading.loader import DataConfig, EvalLoader, Views
from data.packing.pack import PackConfig, pack
from launch.bench.probe import bench_probe
from launch.config import to_yaml
from launch.exchange.encoders import hash_weights
from launch.probing import probe as module
from launch.probing.probe import ProbeConfig, probe
from probes.evaluate import HeadsConfig
from probes.extract import Order, extract
from probes.extractors import FrozenEncoder
from probes.fit import AttentiveConfig, predict_attentive
from probes.results import read_predictions, read_results
from probes.saved import load_attentive, load_linear
from vjepa.encoder import Encoder, EncoderConfig, build_encoder
from vjepa.formats.loading import load_encoder
from vjepa.formats.native import save_encoder

ATTENTIVE = AttentiveConfig(lrs=(1e-2,), weight_decays=(0.01,), epochs=2, batch=8)


@pytest.fixture
def config(shards: Path, encoder: Encoder, tmp_path: Path) -> ProbeConfig:
    """A probe of an untrained encoder on 24 clips."""
    save_encoder(encoder, tmp_path / "encoder")
    return ProbeConfig(
        encoder=str(tmp_path / "encoder"),
        train=str(shards),
        test=str(shards),
        data=DataConfig(stride=1, workers=0),
        heads=HeadsConfig(attentive=ATTENTIVE),
        baselines=("random",),
        cache="memory",
        output=str(tmp_path / "out"),
    )


def predictions(folder: Path) -> dict[tuple[str, str], object]:
    return dict(read_predictions(read_results(folder)))


def test_saved_heads_are_those_of_the_encoder_that_were_measured(config: ProbeConfig) -> None:
    measured = {(result.features, result.head): result.score for result in probe(config)}
    folder = Path(config.output)
    encoder = load_encoder(config.encoder)
    saved, linear = load_attentive(folder), load_linear(folder / "results.json")
    assert list(saved.classes) == json.loads((folder / "results.json").read_text())["classes"]
    assert saved.encoder == config.encoder
    assert saved.head.heads == 3, "as many as the encoder"
    saved.check_encoder(24, hash_weights(encoder))
    loader = EvalLoader(replace(config.data, path=config.test, frames=4, crop=32), 4)
    features = extract(Order({"encoder": FrozenEncoder(encoder)}, loader))["encoder"]
    attentive = predict_attentive(saved.head, features).argmax(1)
    assert float((attentive == features.labels).double().mean()) == pytest.approx(measured["encoder", "attentive"].top1)
    pooled = linear.head(features.pooled[:, 0]).argmax(1)
    assert float((pooled == features.labels).double().mean()) == pytest.approx(measured["encoder", "linear"].top1)


def test_heads_of_an_earlier_probe_do_not_stay(config: ProbeConfig, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "attentive.safetensors").write_bytes(b"old")
    probe(replace(config, heads=HeadsConfig(names=("linear", "knn")), baselines=()))
    assert [path.name for path in (tmp_path / "out").glob("*.safetensors")] == ["linear.safetensors"]


def test_the_last_layer_by_its_number_is_the_last_layer(config: ProbeConfig) -> None:
    saved = []
    for number, layers in enumerate(((), (-1,), (2,), (1,))):
        output = f"{config.output}-{number}"
        probe(replace(config, layers=layers, heads=HeadsConfig(names=("linear",)), baselines=(), output=output))
        saved.append(load_linear(output).encoder_hash)
    assert saved[0] == saved[1] == saved[2] != saved[3]


def test_finished_heads_are_kept_until_the_results_are_written(
    config: ProbeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unfinished = tmp_path / "out" / "unfinished"
    (unfinished / "of-other-settings").mkdir(parents=True)
    config = replace(config, heads=HeadsConfig(names=("linear",)), baselines=())

    def break_down(*arguments: object) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_results", break_down)
        with pytest.raises(OSError, match="no space left"):
            probe(config)
    assert len(list(unfinished.rglob("*.pt"))) == 1
    probe(config)
    assert not unfinished.exists()


def test_cached_streamed_and_in_memory_give_one_result(config: ProbeConfig, tmp_path: Path) -> None:
    config = replace(config, views=Views(segments=2, augmented=2, flip=0.5), layers=(0, 2), precision="fp32")
    found = []
    for cache in ("memory", "off", str(tmp_path / "features"), str(tmp_path / "features")):
        results = probe(replace(config, cache=cache))
        found.append([(result.features, result.head, result.score, result.choice) for result in results])
    assert len(found[0]) == 6
    assert all(each == found[0] for each in found)


def test_ranks_and_workers_change_nothing(config: ProbeConfig, tmp_path: Path) -> None:
    """Two processes with two workers each against one with none: every sample once, all numbers equal."""
    config = replace(config, cache=str(tmp_path / "one"), output=str(tmp_path / "out-one"))
    probe(config)
    shared = replace(config, cache=str(tmp_path / "two"), output=str(tmp_path / "out-two"))
    shared = replace(shared, data=replace(config.data, workers=2))
    (tmp_path / "config.yaml").write_text(to_yaml(shared))
    words = [sys.executable, "-m", "launch", "probe", str(tmp_path / "config.yaml")]
    root = Path(__file__).parents[2]
    ranks = [
        subprocess.Popen(
            words, cwd=root, env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
        )
        for rank in range(2)
    ]
    assert [rank.wait(200) for rank in ranks] == [0, 0]
    alone, together = read_results(tmp_path / "out-one"), read_results(tmp_path / "out-two")
    assert alone.rows == together.rows
    mine, theirs = (read_predictions(document) for document in (alone, together))
    assert mine == theirs
    for said in theirs.values():
        assert len(set(said.keys)) == len(said.keys) == 24


def test_a_probe_of_several_processes_needs_a_place_to_exchange_features(
    config: ProbeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="cache=memory works only with one process, got 2: give cache=FOLDER"):
        probe(config)


def test_images_are_probed_with_the_same_command(config: ProbeConfig, tmp_path: Path) -> None:
    """Colour is the class; one frame is shown as one tubelet of equal frames."""
    draw = torch.Generator().manual_seed(0)
    for number in range(40):
        name = ("red", "blue")[number % 2]
        pixels = torch.randint(100, (40, 48, 3), generator=draw, dtype=torch.uint8)
        pixels[..., 0 if name == "red" else 2] += 120
        (tmp_path / "images" / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.numpy()).save(tmp_path / "images" / name / f"{number}.jpg")
    pack(str(tmp_path / "images"), str(tmp_path / "shards"), PackConfig(jobs=0))
    shards = str(tmp_path / "shards")
    results = probe(replace(config, train=shards, test=shards, frames=1, baselines=("pixels", "first_frame")))
    scores = {(result.features, result.head): result.score.top1 for result in results}
    assert scores["encoder", "linear"] == 1.0
    assert scores["raw pixels", "knn"] == 1.0
    assert ("raw pixels", "attentive") not in scores, "one token: nothing to attend to"
    assert scores["encoder, first frame only", "linear"] == scores["encoder", "linear"]
    still = probe(replace(config, train=shards, test=shards, baselines=(), output=str(tmp_path / "still")))
    assert {result.head: result.score.top1 for result in still}["linear"] == 1.0


def test_values_are_regressed_and_missing_ones_named(config: ProbeConfig, shards: Path, tmp_path: Path) -> None:
    loader = EvalLoader(replace(config.data, path=str(shards), frames=4, crop=32), 4)
    clips = {key: clip for batch in loader for key, clip in zip(batch.keys, batch.clips, strict=True)}
    table = tmp_path / "brightness.csv"
    lines = [f"{key},{float(clip.float().mean())}" for key, clip in clips.items()]
    table.write_text("\n".join(["key,value", *lines]) + "\n")
    heads = HeadsConfig(names=("linear",))
    (encoder,) = probe(replace(config, targets=str(table), heads=heads, baselines=()))
    assert encoder.score.r2 > 0.5
    assert read_results(Path(config.output)).task == "regression"
    table.write_text("\n".join(["key,value", *lines[2:]]) + "\n")
    first, second = list(clips)[:2]
    with pytest.raises(ValueError, match=f"2 of 24 samples of {shards} have no value: {first}, {second}; every sample"):
        probe(replace(config, targets=str(table), heads=heads, baselines=()))


def test_an_image_vit_and_the_baselines_stand_in_one_table(config: ProbeConfig) -> None:
    heads = HeadsConfig(names=("linear",))
    config = replace(config, heads=heads, baselines=("random", "timm:vit_tiny_patch16_224"), layers=(1,))
    names = [result.features for result in probe(config)]
    assert names == ["encoder", "random encoder", "timm:vit_tiny_patch16_224"]
    image = replace(config, encoder="timm:vit_tiny_patch16_224", crop=32, baselines=("random",), layers=())
    image = replace(image, output=f"{config.output}-image")
    assert [result.features for result in probe(image)] == ["encoder", "random encoder"]


def test_sets_that_name_other_classes_are_refused_before_anything_is_encoded(
    config: ProbeConfig, tmp_path: Path
) -> None:
    (tmp_path / "other" / "a").mkdir(parents=True)
    Image.new("RGB", (32, 32)).save(tmp_path / "other" / "a" / "1.png")
    pack(str(tmp_path / "other"), str(tmp_path / "other-shards"), PackConfig(jobs=0))
    with pytest.raises(ValueError, match="must have the same classes"):
        probe(replace(config, test=str(tmp_path / "other-shards")))


def test_bench_times_the_sweep_against_one_head_with_the_encoder_in_every_epoch(config: ProbeConfig) -> None:
    attentive = replace(ATTENTIVE, lrs=(1e-2, 1e-3))
    found = bench_probe(replace(config, heads=replace(config.heads, attentive=attentive)), repeats=1)
    assert (found["heads"], found["epochs"], found["samples"], found["tokens"]) == (2, 2, [24, 24], (8, 24))
    assert found["wall_share"] == pytest.approx(found["sweep_wall_s"] / found["alone_wall_s"], rel=0.1)
    with pytest.raises(ValueError, match="must have one attentive head to be timed, got linear"):
        bench_probe(replace(config, heads=HeadsConfig(names=("linear",))), repeats=1)


def test_results_of_another_probe_are_not_replaced(config: ProbeConfig, tmp_path: Path) -> None:
    config = replace(config, heads=HeadsConfig(names=("linear",)), baselines=())
    probe(config)
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()}
    free = str(tmp_path / "out-2")
    for changed, words in (
        (replace(config, test="elsewhere"), f"test: elsewhere (was {config.test})"),
        (replace(config, heads=replace(config.heads, names=("knn",))), "heads.names: ['knn'] (was ['linear'])"),
        (replace(config, baselines=("pixels",)), "baselines: ['pixels'] (was [])"),
        (replace(config, data=replace(config.data, stride=2)), "data.stride: 2 (was 1)"),
    ):
        with pytest.raises(ValueError, match=re.escape(words)) as refused:
            module.check_output(changed)
        assert f"output={free}, or delete" in str(refused.value)
    with pytest.raises(ValueError, match="holds the results of another probe"):
        probe(replace(config, encoder="timm:vit_tiny_patch16_224"))
    assert {path: path.read_bytes() for path in before} == before
    module.check_output(replace(config, batch=2, cache="off", data=replace(config.data, workers=2)))


def test_a_file_that_is_no_probe_of_ours_is_not_replaced(config: ProbeConfig, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "results.json").write_text('{"format": "vjepa-demo-1"}')
    with pytest.raises(ValueError, match="got 'vjepa-demo-1'.* It will not be overwritten: give another output"):
        probe(config)


def test_two_probes_of_one_output_are_refused(config: ProbeConfig) -> None:
    with (
        claim_folder(Path(config.output), "probe", ""),
        pytest.raises(InUseError, match=f"{config.output} is in use by another probe .*give another output=FOLDER"),
    ):
        probe(config)


def test_wrong_settings_name_the_field() -> None:
    with pytest.raises(ValueError, match="baselines must be among"):
        ProbeConfig(baselines=("frames",))
    with pytest.raises(ValueError, match="batch and cache_gb must be positive"):
        ProbeConfig(batch=0)
    with pytest.raises(ValueError, match="encoder is required"):
        probe(ProbeConfig())


def test_hierarchical_features_are_all_levels_of_a_token_joined(config: ProbeConfig, tmp_path: Path) -> None:
    new = EncoderConfig(
        kind="vjepa21", size="custom", width=24, depth=4, heads=3, frames=4, crop=32, positions="rotary"
    )
    torch.manual_seed(0)
    encoder = build_encoder(new)
    clips = torch.randint(0, 256, (2, 4, 32, 32, 3), dtype=torch.uint8)
    levels = FrozenEncoder(encoder, precision="fp32", layers=(0, 1, 2, 3))(clips).unflatten(1, (4, -1))
    joined = FrozenEncoder(encoder, precision="fp32", hierarchical=True)
    torch.testing.assert_close(joined(clips), torch.cat(list(levels.unbind(1)), -1))
    assert joined.describe() != FrozenEncoder(encoder, precision="fp32").describe()
    save_encoder(encoder, tmp_path / "encoder")
    results = probe(replace(config, hierarchical=True))
    assert {(result.features, result.head) for result in results} >= {("encoder", "attentive"), ("encoder", "linear")}
    assert load_attentive(config.output).head.linear.weight.shape[1] == 4 * 24
    assert load_attentive(config.output).encoder_hash != hash_weights(encoder)
    with pytest.raises(ValueError, match="hierarchical features are those of all levels, give no layers"):
        probe(replace(config, hierarchical=True, layers=(3,), output=str(tmp_path / "layers")))
