"""Official checkpoints: read strictly, written back bit for bit, and each kind of damage has its own words."""

import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vjepa.encoder import Encoder, EncoderConfig, build_encoder
from vjepa.formats.accounting import resize_encoder, start_from
from vjepa.formats.architecture import Hints, name_size
from vjepa.formats.loading import load_encoder, load_pretrained
from vjepa.formats.meta import load_meta, save_meta
from vjepa.formats.native import load_native, save_encoder
from vjepa.jepa import JEPA, JepaConfig
from vjepa.positions import sincos_table
from vjepa.predictor import Predictor, PredictorConfig

Checkpoint = dict[str, Any]
HEADS = Hints(heads=2, predictor_heads=2)


def make_weights(stem: str, width: int, depth: int, first: dict[str, tuple[int, ...]], last: str) -> dict[str, Tensor]:
    """Random tensors named as in the public code."""
    shapes = dict(first)
    for number in range(depth):
        block = f"{stem}.{number}"
        for norm in ("norm1", "norm2"):
            shapes |= {f"{block}.{norm}.weight": (width,), f"{block}.{norm}.bias": (width,)}
        for name, rows, columns in (
            ("attn.qkv", 3 * width, width), ("attn.proj", width, width),
            ("mlp.fc1", 4 * width, width), ("mlp.fc2", width, 4 * width),
        ):  # fmt: skip
            shapes |= {f"{block}.{name}.weight": (rows, columns), f"{block}.{name}.bias": (rows,)}
    shapes |= {f"{last}.weight": (width,), f"{last}.bias": (width,)}
    generator = torch.Generator().manual_seed(len(shapes))
    return {f"module.backbone.{name}": torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def make_checkpoint(version: int, depth: int = 3, prefix: str = "module.backbone.") -> Checkpoint:
    """A training checkpoint of V-JEPA 1 or 2 in small: 4 frames at 32 pixels, patch 16, width 24."""
    patch = {"patch_embed.proj.weight": (24, 3, 2, 16, 16), "patch_embed.proj.bias": (24,)}
    first = {
        "predictor_embed.weight": (12, 24), "predictor_embed.bias": (12,),
        "predictor_proj.weight": (24, 12), "predictor_proj.bias": (24,),
    }  # fmt: skip
    first |= {f"mask_tokens.{number}": (1, 1, 12) for number in range(2 if version == 1 else 10)}
    encoder = make_weights("blocks", 24, depth, patch, "norm")
    predictor = make_weights("predictor_blocks", 12, 2, first, "predictor_norm")
    if version == 1:
        encoder["module.backbone.pos_embed"] = sincos_table(24, (2, 2, 2)).unsqueeze(0)
        predictor["module.backbone.predictor_pos_embed"] = sincos_table(12, (2, 2, 2)).unsqueeze(0)
    target = {name: value if "pos_embed" in name else value + 1 for name, value in encoder.items()}
    parts = {"encoder": encoder, "predictor": predictor, "target_encoder": target}
    renamed = {
        part: {name.replace("module.backbone.", prefix): value for name, value in weights.items()}
        for part, weights in parts.items()
    }
    beside = {"opt": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": []}, "scaler": None, "epoch": 3}
    return {**renamed, **beside, "loss": np.float64(0.5), "batch_size": 24, "world_size": 1, "lr": 1e-4}


def write(content: Any, folder: Path, name: str = "model.pth.tar") -> Path:
    torch.save(content, folder / name)
    return folder / name


def test_a_predictor_of_which_one_token_was_trained_gives_it_to_every_mask(tmp_path: Path) -> None:
    config = EncoderConfig(
        size="custom", width=24, depth=1, heads=2, patch=8, frames=4, crop=16, positions="rotary", rotary_order="tiled"
    )
    predictor = Predictor(PredictorConfig(width=24, depth=1, heads=2, mask_tokens=8), config)
    torch.nn.init.ones_(predictor.mask_tokens[0])
    hints = Hints(predictor_heads=2, heads=2, frames=4, crop=16)
    found = load_meta(save_meta(Encoder(config), predictor, tmp_path), "target_encoder", hints).predictor
    assert found is not None
    assert found.config.mask_token == "clip"
    assert torch.equal(found.mask_token(1, (2, 2, 2)), predictor.mask_tokens[0])
    torch.nn.init.ones_(predictor.mask_tokens[1])
    found = load_meta(save_meta(Encoder(config), predictor, tmp_path), "target_encoder", hints).predictor
    assert found is not None
    assert found.config.mask_token == "mask"


def test_version_1_loads_strictly(tmp_path: Path) -> None:
    content = make_checkpoint(1)
    loaded = load_meta(write(content, tmp_path), "target_encoder", HEADS)
    assert (loaded.encoder.config.positions, loaded.encoder.config.grid) == ("sincos", (2, 2, 2))
    assert (loaded.encoder.config.frames, loaded.encoder.config.crop, loaded.encoder.config.depth) == (4, 32, 3)
    for name, tensor in loaded.encoder.state_dict().items():
        assert torch.equal(tensor, content["target_encoder"][f"module.backbone.{name}"])
    assert loaded.predictor is not None
    assert torch.equal(loaded.predictor.mask_tokens[1], content["predictor"]["module.backbone.mask_tokens.1"])
    assert {"encoder", "opt", "scaler", "epoch", "loss", "target_encoder.pos_embed"} <= loaded.ignored.keys()
    assert set(content) - loaded.ignored.keys() == {"target_encoder", "predictor"}


@pytest.mark.parametrize("which", ["encoder", "target_encoder"])
def test_version_2_loads_strictly(tmp_path: Path, which: Any) -> None:
    content = make_checkpoint(2)
    loaded = load_meta(write(content, tmp_path, "vitl.pt"), which, HEADS)
    config = loaded.encoder.config
    assert (config.positions, config.rotary_order, config.frames, config.crop) == ("rotary", "tiled", 64, 256)
    assert torch.equal(loaded.encoder.norm.weight, content[which]["module.backbone.norm.weight"])
    assert loaded.predictor is not None
    assert len(loaded.predictor.mask_tokens) == 10
    assert any("tiled" in text for text in loaded.assumed)


@pytest.mark.parametrize("prefix", ["module.", "backbone.", ""])
def test_hub_form_and_other_prefixes_load(tmp_path: Path, prefix: str) -> None:
    content = make_checkpoint(2, prefix=prefix)
    hub = {"ema_encoder": content["encoder"], "predictor": content["predictor"]}
    assert load_encoder(write(hub, tmp_path, "hub.pt"), "ema_encoder", HEADS).config.depth == 3


def test_unused_table_of_version_2_is_left_aside(tmp_path: Path) -> None:
    content = make_checkpoint(2)
    content["encoder"]["module.backbone.pos_embed"] = torch.zeros(1, 8, 24)
    loaded = load_meta(write(content, tmp_path), "encoder", HEADS)
    assert loaded.encoder.config.positions == "rotary"
    assert "not used" in loaded.ignored["encoder.pos_embed"]


def test_predictor_conditioned_on_actions_is_left_aside(tmp_path: Path) -> None:
    content = make_checkpoint(2)
    content["predictor"]["module.backbone.action_encoder.weight"] = torch.zeros(12, 7)
    loaded = load_meta(write(content, tmp_path), "encoder", HEADS)
    assert loaded.predictor is None
    assert loaded.ignored["predictor"] == "conditioned on actions (V-JEPA 2-AC)"


def test_positions_are_asked_for_where_the_file_does_not_tell(tmp_path: Path) -> None:
    content = make_checkpoint(1)
    del content["predictor"]
    path = write(content, tmp_path)
    with pytest.raises(ValueError, match=r"give positions=sincos \(V-JEPA 1\) or positions=rotary"):
        load_meta(path, "encoder", HEADS)
    loaded = load_meta(path, "encoder", Hints(heads=2, positions="sincos"))
    assert loaded.encoder.config.positions == "sincos"
    assert loaded.predictor is None


def test_published_sizes_know_their_heads() -> None:
    assert name_size(1024, 24, 4096, "rotary", 0, "x") == ("large", 16, 4.0)
    assert name_size(1408, 40, 6144, "rotary", 0, "x")[:2] == ("giant", 22)
    assert name_size(1408, 40, 6144, "sincos", 0, "x")[:2] == ("custom", 16)  # V-JEPA 1
    with pytest.raises(ValueError, match=r"no published size \(large has 24 blocks; are some missing\?\)"):
        name_size(1024, 23, 4096, "rotary", 0, "x")


@pytest.mark.parametrize("positions", ["sincos", "rotary"])
def test_native_to_meta_and_back_is_bit_exact(tmp_path: Path, positions: Any) -> None:
    config = EncoderConfig(
        size="custom", width=24, depth=2, heads=2, patch=8, frames=4, crop=32, positions=positions, rotary_order="tiled"
    )
    encoder = Encoder(config)
    predictor = Predictor(PredictorConfig(width=12, depth=1, mask_tokens=2), config)
    loaded = load_pretrained(save_meta(encoder, predictor, tmp_path), "target_encoder")
    assert loaded.encoder.config == config
    assert loaded.predictor is not None
    for mine, theirs in ((encoder, loaded.encoder), (predictor, loaded.predictor)):
        stored = theirs.state_dict()
        assert all(torch.equal(tensor, stored[name]) for name, tensor in mine.state_dict().items())
        assert stored.keys() == mine.state_dict().keys()


def test_written_checkpoint_has_the_names_of_the_public_code(tmp_path: Path) -> None:
    content = make_checkpoint(1)
    loaded = load_meta(write(content, tmp_path), "target_encoder", HEADS)
    written = torch.load(save_meta(loaded.encoder, loaded.predictor, tmp_path / "out"), weights_only=True)
    for part, origin in (("target_encoder", "target_encoder"), ("encoder", "target_encoder"), ("predictor",) * 2):
        assert written[part].keys() == content[origin].keys()
        assert all(torch.equal(value, content[origin][name]) for name, value in written[part].items())


def test_interleaved_frequencies_are_refused_for_the_public_code(tmp_path: Path) -> None:
    encoder = Encoder(EncoderConfig(size="custom", width=24, depth=1, heads=2, patch=8, crop=32, positions="rotary"))
    with pytest.raises(ValueError, match=r"interleaved.*--format native or onnx"):
        save_meta(encoder, None, tmp_path)


class Bomb:
    """Runs a command when it is unpickled the careless way."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


def without(content: Checkpoint, part: str, pattern: str) -> Checkpoint:
    kept = {name: value for name, value in content[part].items() if not re.search(pattern, name)}
    return {**content, part: kept}


def renamed(content: Checkpoint, part: str, old: str, new: str) -> Checkpoint:
    return {**content, part: {name.replace(old, new): value for name, value in content[part].items()}}


def changed(content: Checkpoint, part: str, **tensors: Any) -> Checkpoint:
    extra = {f"module.backbone.{name.replace('__', '.')}": value for name, value in tensors.items()}
    return {**content, part: {**content[part], **extra}}


BROKEN_TABLE = sincos_table(24, (2, 2, 2)).unsqueeze(0) * 1.1
NOT_A_NUMBER = torch.full((24,), float("nan"))
DAMAGES: dict[str, tuple[Callable[[Checkpoint], Any], str]] = {
    "block in between missing": (
        lambda c: without(c, "encoder", r"blocks\.1\."),
        r"blocks\.1 missing.*up to blocks\.2",
    ),
    "tensor missing": (
        lambda c: without(c, "encoder", r"2\.attn\.qkv\.bias"),
        r"missing blocks\.2\.attn\.qkv\.bias \[72\]",
    ),
    "embedding missing": (
        lambda c: without(c, "encoder", "patch_embed.proj.weight"),
        r"has no patch_embed\.proj\.weight; it begins with module",
    ),
    "unknown tensor": (
        lambda c: changed(c, "encoder", cls_token=torch.zeros(1, 1, 24)),
        r"unknown cls_token \[1, 1, 24\]",
    ),
    "wrong shape": (
        lambda c: changed(c, "encoder", norm__bias=torch.zeros(25)),
        r"norm\.bias is \[25\], the model has \[24\]",
    ),
    "not a number": (lambda c: changed(c, "encoder", norm__bias=NOT_A_NUMBER), r"norm\.bias .* not finite"),
    "no tensor": (lambda c: changed(c, "encoder", norm__bias="x"), r"only tensors.*norm\.bias"),
    "altered table": (
        lambda c: changed(c, "encoder", pos_embed=BROKEN_TABLE),
        r"no sin-cos table: .*\(2x2x2\) differs by 0\.1",
    ),
    "table of the predictor missing": (
        lambda c: without(c, "predictor", "pos_embed"),
        r"has no predictor_pos_embed although",
    ),
    "predictor of another encoder": (
        lambda c: changed(c, "predictor", predictor_embed__weight=torch.zeros(12, 32)),
        r"width 32, but the encoder has width 24",
    ),
    "predictor block missing": (
        lambda c: without(c, "predictor", r"predictor_blocks\.0\."),
        r"predictor_blocks\.0 missing",
    ),
    "nested prefix": (
        lambda c: renamed(c, "encoder", "module.", "module.module."),
        r"begin with 'module\.module\.backbone\.'",
    ),
    "mixed prefixes": (
        lambda c: renamed(c, "encoder", "module.backbone.norm", "norm"),
        r"these do not: norm\.weight; norm\.bias",
    ),
    "chosen encoder not there": (
        lambda c: {k: v for k, v in c.items() if k != "encoder"},
        r"no encoder; it has target_enc",
    ),
    "another kind of file": (
        lambda c: {"state_dict": c["encoder"]},
        r"holds no encoder .* but something else: state_dict",
    ),
    "checkpoint of a probe": (lambda c: {"classifiers": [], "opt": None}, r"the weights of a probe"),
    "unknown part": (lambda c: {**c, "decoder": {}}, r"holds 'decoder' \(dict\), which no official checkpoint has"),
    "version 2.1": (lambda c: changed(c, "encoder", norms_block__0__bias=torch.zeros(24)), r"is V-JEPA 2\.1 in part"),
    "a list": (lambda c: [c], r"must hold a dictionary of weights, got list"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_has_its_own_error(tmp_path: Path, damage: str) -> None:
    break_it, words = DAMAGES[damage]
    path = write(break_it(make_checkpoint(1)), tmp_path)
    with pytest.raises(ValueError, match=words) as caught:
        load_meta(path, "encoder", HEADS)
    assert str(path) in str(caught.value)


def test_cut_off_empty_and_foreign_files_say_so(tmp_path: Path) -> None:
    whole = write(make_checkpoint(1), tmp_path).read_bytes()
    files = {
        whole[: len(whole) // 2]: "is cut off", b"": "is empty", b"hello world": "not a whole file|is refused",
        bytes(500): "not a whole file|is refused", b"PK\x03\x04": "is cut off",
    }  # fmt: skip
    for content, words in files.items():
        (tmp_path / "broken.pt").write_bytes(content)
        with pytest.raises(ValueError, match=words):
            load_meta(tmp_path / "broken.pt", "encoder")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load_meta(tmp_path / "absent.pt", "encoder")


@pytest.mark.parametrize("old_style", [False, True])
def test_hostile_pickle_is_refused_and_not_run(tmp_path: Path, old_style: bool) -> None:
    mark, path = tmp_path / "pwned", tmp_path / "model.pt"
    content = {"encoder": make_checkpoint(1)["encoder"], "opt": Bomb(mark)}
    if old_style:
        path.write_bytes(pickle.dumps(content["opt"], protocol=2))
    else:
        torch.save(content, path)
    with pytest.raises(
        ValueError, match=r"is refused: loading it would run (posix|nt)\.system" if not old_style else "is refused"
    ):
        load_meta(path, "encoder")
    assert not mark.exists()


def test_which_encoder_has_to_be_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds encoder, target_encoder: say which"):
        load_pretrained(write(make_checkpoint(2), tmp_path))


def test_depth_that_differs_from_the_config_is_named(tmp_path: Path) -> None:
    loaded = load_meta(write(make_checkpoint(1), tmp_path), "encoder", HEADS)
    config = EncoderConfig(size="custom", width=24, depth=2, heads=2, frames=4, crop=32)
    with pytest.raises(ValueError, match=r"the file has encoder\.depth=3, the config 2"):
        start_from(loaded, Encoder(config))
    fitting = EncoderConfig(size="custom", width=24, depth=3, heads=2, frames=4, crop=32)
    predictor = Predictor(PredictorConfig(width=12, depth=4, mask_tokens=2), fitting)
    with pytest.raises(ValueError, match=r"the file has predictor\.depth=2, the config 4"):
        start_from(loaded, Encoder(fitting), predictor)


def test_pretraining_goes_on_at_another_size(tmp_path: Path) -> None:
    content = make_checkpoint(2)
    loaded = load_meta(write(content, tmp_path), "encoder", HEADS)
    config = EncoderConfig(
        size="custom", width=24, depth=3, heads=2, frames=8, crop=48, positions="rotary", rotary_order="tiled"
    )
    encoder, predictor = Encoder(config), Predictor(PredictorConfig(width=12, depth=2, mask_tokens=2), config)
    start_from(loaded, encoder, predictor)
    assert torch.equal(encoder.norm.weight, content["encoder"]["module.backbone.norm.weight"])
    assert torch.equal(predictor.mask_tokens[1], content["predictor"]["module.backbone.mask_tokens.1"])


def test_resized_encoder_has_the_table_of_its_new_grid(tmp_path: Path) -> None:
    loaded = load_meta(write(make_checkpoint(1), tmp_path), "encoder", HEADS)
    resized = resize_encoder(loaded.encoder, frames=8, crop=64)
    assert torch.equal(resized.position_table, sincos_table(24, (4, 4, 4)))
    features = resized(torch.randn(1, 3, 8, 64, 64))
    assert features.shape == (1, 64, 24)
    assert features.isfinite().all()
    same = resize_encoder(loaded.encoder)
    clip = torch.randn(1, 3, 4, 32, 32)
    assert torch.equal(same(clip), loaded.encoder(clip))


@pytest.mark.parametrize("version", [1, 2])
def test_a_training_step_from_an_official_file_at_another_size_is_finite(tmp_path: Path, version: int) -> None:
    loaded = load_meta(write(make_checkpoint(version), tmp_path), "target_encoder", HEADS)
    assert loaded.predictor is not None
    larger = resize_encoder(loaded.encoder, frames=8, crop=64)
    model = JEPA(JepaConfig(encoder=larger.config, predictor=loaded.predictor.config))
    start_from(loaded, model.context_encoder, model.predictor)
    model.target_encoder.update(model.context_encoder, momentum=0.0)
    assert torch.equal(model.target_encoder.encoder.norm.weight, loaded.encoder.norm.weight)
    loss = model.training_step(
        SimpleNamespace(clips=torch.randint(0, 256, (2, 8, 64, 64, 3), dtype=torch.uint8), position=2), 0
    )
    loss.backward()
    assert loss.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in model.predictor.predictor_blocks.parameters())


def make_version_2_1(levels: int = 4, target_width: int = 0, prefix: str = "module.backbone.") -> Checkpoint:
    """A checkpoint of V-JEPA 2.1 in small: width 24, 4 blocks; with one level, a distilled one."""
    patch: dict[str, tuple[int, ...]] = {
        "patch_embed.proj.weight": (24, 3, 2, 16, 16), "patch_embed.proj.bias": (24,),
        "patch_embed_img.proj.weight": (24, 3, 1, 16, 16), "patch_embed_img.proj.bias": (24,),
        "video_mod_embed": (1, 1, 24), "img_mod_embed": (1, 1, 24),
    }  # fmt: skip
    for level in range(3):
        patch |= {f"norms_block.{level}.weight": (24,), f"norms_block.{level}.bias": (24,)}
    out = target_width or 24 * levels
    first: dict[str, tuple[int, ...]] = {
        "predictor_proj.weight": (out, 12), "predictor_proj.bias": (out,),
        "predictor_proj_context.weight": (out, 12), "predictor_proj_context.bias": (out,),
        "video_mod_embed": (1, 1, 12), "img_mod_embed": (1, 1, 12),
    }  # fmt: skip
    if levels == 1:
        first |= {"predictor_embed.weight": (12, 24), "predictor_embed.bias": (12,)}
    else:
        first |= {"predictor_embed.0.weight": (24, 24 * levels), "predictor_embed.0.bias": (24,)}
        first |= {"predictor_embed.2.weight": (12, 24), "predictor_embed.2.bias": (12,)}
    first |= {f"mask_tokens.{number}": (1, 1, 12) for number in range(8)}
    parts = {
        "ema_encoder" if levels == 1 else "target_encoder": make_weights("blocks", 24, 4, patch, "norms_block.3"),
        "predictor": make_weights("predictor_blocks", 12, 2, first, "predictor_norm"),
    }
    return {
        part: {name.replace("module.backbone.", prefix): value for name, value in weights.items()}
        for part, weights in parts.items()
    }


@pytest.mark.parametrize("prefix", ["module.backbone.", "module.", ""])
@pytest.mark.parametrize(("which", "levels", "width"), [("target_encoder", 4, 0), ("ema_encoder", 1, 40)])
def test_both_families_of_version_2_1_load_strictly(
    tmp_path: Path, prefix: str, which: Any, levels: int, width: int
) -> None:
    content = make_version_2_1(levels, width, prefix)
    loaded = load_meta(write(content, tmp_path, "vit.pt"), which, HEADS)
    config = loaded.encoder.config
    assert (config.kind, config.rotary_order, config.frames, config.crop) == ("vjepa21", "interleaved", 64, 384)
    assert {f"{prefix}{name}" for name in loaded.encoder.state_dict()} == content[which].keys()
    assert all(torch.equal(value, content[which][prefix + name]) for name, value in loaded.encoder.state_dict().items())
    predictor = loaded.predictor
    assert predictor is not None
    assert (predictor.levels, predictor.target_width) == (levels, width or 96)
    assert {f"{prefix}{name}" for name in predictor.state_dict()} == content["predictor"].keys()
    assert not loaded.ignored


def test_a_predictor_of_version_2_1_has_twelve_heads_as_published(tmp_path: Path) -> None:
    content = make_version_2_1()
    with pytest.raises(ValueError, match=r"predictor: rotary positions need heads at least 6 wide, got 12/12"):
        load_meta(write(content, tmp_path, "vit.pt"), "target_encoder", Hints(heads=2))


@pytest.mark.parametrize(("name", "part", "message"), [
    ("norms_block.2.bias", "target_encoder", r"missing norms_block.2.bias"),
    ("img_mod_embed", "target_encoder", r"V-JEPA 2.1 in part: .* but not img_mod_embed"),
    ("predictor_proj_context.weight", "predictor", r"missing predictor_proj_context.weight"),
])  # fmt: skip
def test_a_version_2_1_with_a_part_missing_is_refused(tmp_path: Path, name: str, part: str, message: str) -> None:
    content = make_version_2_1()
    del content[part][f"module.backbone.{name}"]
    with pytest.raises(ValueError, match=message):
        load_meta(write(content, tmp_path, "vit.pt"), "target_encoder", HEADS)


def test_a_tensor_that_version_2_1_does_not_have_is_refused(tmp_path: Path) -> None:
    content = make_version_2_1()
    content["target_encoder"]["module.backbone.norm.weight"] = torch.zeros(24)
    with pytest.raises(ValueError, match=r"unknown norm.weight \[24\]"):
        load_meta(write(content, tmp_path, "vit.pt"), "target_encoder", HEADS)


@pytest.mark.parametrize(("levels", "width"), [(4, 0), (1, 40)])
@pytest.mark.parametrize("to", [save_meta, "native"])
def test_version_2_1_is_written_and_read_back_bit_for_bit(tmp_path: Path, levels: int, width: int, to: Any) -> None:
    which: Any = "ema_encoder" if levels == 1 else "target_encoder"
    first = load_meta(write(make_version_2_1(levels, width), tmp_path, "vit.pt"), which, HEADS)
    if to == "native":
        again = load_native(save_encoder(first.encoder, tmp_path / "out", predictor=first.predictor))
    else:
        path = save_meta(first.encoder, first.predictor, tmp_path / "out")
        again = load_meta(path, "target_encoder")
        names = torch.load(path, weights_only=True)["predictor"].keys()
        assert names == make_version_2_1(levels, width)["predictor"].keys()
    assert again.encoder.config == first.encoder.config
    assert first.predictor is not None
    assert again.predictor is not None
    for mine, theirs in ((again.encoder, first.encoder), (again.predictor, first.predictor)):
        other = theirs.state_dict()
        assert mine.state_dict().keys() == other.keys()
        assert all(torch.equal(value, other[name]) for name, value in mine.state_dict().items())


def test_the_distilled_sizes_are_written_under_the_name_that_the_public_code_asks_for(tmp_path: Path) -> None:
    for size, expected in (("base", True), ("custom", False)):
        config = EncoderConfig(
            kind="vjepa21",
            size=size,
            width=24,
            depth=4,
            heads=2,
            positions="rotary",  # type: ignore[arg-type]
        )
        path = save_meta(build_encoder(config), None, tmp_path / size)
        assert ("ema_encoder" in torch.load(path, weights_only=True)) == expected
