"""Sliding windows: complete, in time, resumable, and the same as windows encoded one by one."""

import io
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from data.decode import decode_frames
from data.files import claim_folder
from data.loading.augment import crop_resize, square_boxes
from data.loading.batch import Views
from data.loading.clips import Timing
from launch.__main__ import main
from launch.exchange.encoders import hash_weights
from launch.exchange.features import WindowConfig, extract_features, plan_windows, read_clip, read_video, show_windows
from probes.heads import AttentiveHead
from probes.saved import SavedHead, save_head
from vjepa.encoder import Encoder, EncoderConfig, build_encoder
from vjepa.formats.arrays import read_metadata
from vjepa.formats.native import save_encoder
from vjepa.formats.transformers import save_transformers
from vjepa.pixels import normalise

CONFIG = EncoderConfig(size="custom", width=24, depth=2, heads=2, patch=16, frames=4, crop=32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder, a long video of 27 frames, and a short one of 3."""
    folder = tmp_path_factory.mktemp("features")
    torch.manual_seed(0)
    encoder = Encoder(CONFIG)
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    save_encoder(encoder, folder / "encoder")
    (folder / "videos").mkdir()
    for name, frames in (("long", 27), ("short", 3)):
        (folder / "videos" / f"{name}.mp4").write_bytes(make_video(frames))
    return folder


def make_video(frames: int, fps: int = 10) -> bytes:
    file = io.BytesIO()
    random = np.random.default_rng(frames)
    with av.open(file, "w", format="mp4") as output:
        stream: Any = output.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt, stream.thread_count = 64, 48, "yuv420p", 1
        for _ in range(frames):
            blocks = random.integers(0, 256, (6, 8, 3), np.uint8)
            frame = av.VideoFrame.from_ndarray(blocks.repeat(8, 0).repeat(8, 1), format="rgb24")
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return file.getvalue()


def load_the_encoder(folder: Path) -> Encoder:
    from vjepa.formats.loading import load_encoder

    return load_encoder(folder / "encoder")


def test_features_of_a_long_video_are_those_of_its_windows(folder: Path) -> None:
    encoder, path = load_the_encoder(folder), folder / "videos" / "long.mp4"
    found = extract_features(read_video(path), encoder, WindowConfig(stride=3, batch=4))
    content = path.read_bytes()
    starts = [*range(0, 24, 3), 23]  # 27 frames: the last window ends with the video
    assert found["frames"][:, 0].tolist() == starts
    for number, start in enumerate(starts):
        frames = decode_frames(content, range(start, start + 4), "av")
        clip = crop_resize(frames, square_boxes(48, 64, 1)[0], 32)
        with torch.no_grad():
            expected = encoder(normalise(clip.unsqueeze(0)))[0]
        torch.testing.assert_close(found["features"][number], expected, atol=1e-5, rtol=1e-5)
    expected_times = torch.tensor([[start / 10, (start + 3) / 10] for start in starts], dtype=torch.float64)
    torch.testing.assert_close(found["times"], expected_times)


def prepare_with_transformers(frames: torch.Tensor, folder: Path) -> torch.Tensor:
    """Frames uint8 [T, H, W, 3] as the exported processor prepares them, normalised [T, 3, S, S]."""
    pytest.importorskip("torchvision")
    processor = pytest.importorskip("transformers").AutoVideoProcessor.from_pretrained(folder)
    pixels: torch.Tensor = processor(frames.permute(0, 3, 1, 2), return_tensors="pt")["pixel_values_videos"]
    return pixels[0]


def test_features_probe_views_and_exported_processor_see_the_same_square(folder: Path, tmp_path: Path) -> None:
    full, published = square_boxes, partial(square_boxes, published=True)
    encoder = load_the_encoder(folder)
    rotary = Encoder(replace(encoder.config, positions="rotary", rotary_order="tiled")).eval()
    save_transformers(rotary, None, tmp_path)
    content = (folder / "videos" / "long.mp4").read_bytes()
    frames = torch.from_numpy(decode_frames(content, range(4), "av"))
    coarse = torch.rand(
        4, 3, 4, 5, generator=torch.Generator().manual_seed(0)
    )  # smooth, and scaled to whole pixels: no filter, no rounding
    smooth = (255 * torch.nn.functional.interpolate(coarse, size=(48, 72), mode="bicubic").clamp(0, 1)).byte()
    smooth = smooth.permute(0, 2, 3, 1).contiguous()
    theirs = prepare_with_transformers(smooth, tmp_path)
    crops = [crop_resize(smooth.numpy(), square(48, 72, 1)[0], 32) for square in (full, published)]
    ours, other = (normalise(crop.unsqueeze(0))[0].transpose(0, 1) for crop in crops)
    assert (theirs - ours).abs().mean() < 0.05 * (theirs - other).abs().mean()
    ours, other = (crop_resize(frames.numpy(), square(48, 64, 1)[0], 32).float() for square in (full, published))
    video = read_video(folder / "videos" / "long.mp4")
    shown = next(show_windows(video, np.arange(4)[None], 32))
    assert torch.equal(shown.float(), ours)
    assert Views().spatial == "full"
    shown = next(show_windows(video, np.arange(4)[None], 32, published=True))
    assert torch.equal(shown.float(), other)


def test_pooling_and_layers_agree_with_the_tokens(folder: Path) -> None:
    encoder, video = load_the_encoder(folder), read_video(folder / "videos" / "long.mp4")
    tokens = extract_features(video, encoder, WindowConfig())["features"]
    mean = extract_features(video, encoder, WindowConfig(pool="mean"))["features"]
    layers = extract_features(video, encoder, WindowConfig(layers=(0, -1)))
    assert tokens.shape == (7, 8, 24)
    torch.testing.assert_close(mean, tokens.mean(1))
    assert set(layers) == {"layer_0", "layer_1", "times", "frames"}
    torch.testing.assert_close(layers["layer_1"], tokens)
    assert not torch.allclose(layers["layer_0"], tokens)


def test_hierarchical_features_are_all_levels_of_a_token_joined(folder: Path) -> None:
    encoder = build_encoder(replace(CONFIG, kind="vjepa21", depth=4, positions="rotary")).eval()
    video = read_video(folder / "videos" / "long.mp4")
    joined = extract_features(video, encoder, WindowConfig(hierarchical=True))["features"]
    layers = extract_features(video, encoder, WindowConfig(layers=(0, 1, 2, 3)))
    torch.testing.assert_close(joined, torch.cat([layers[f"layer_{block}"] for block in range(4)], -1))
    with pytest.raises(ValueError, match="--hierarchical joins all levels; drop --layers"):
        WindowConfig(hierarchical=True, layers=(0,))
    with pytest.raises(ValueError, match="hierarchical features need an encoder with a norm for each level"):
        extract_features(video, load_the_encoder(folder), WindowConfig(hierarchical=True))


@pytest.mark.parametrize("frames", [1, 3, 4, 5, 8, 17, 30])
@pytest.mark.parametrize(("window", "stride"), [(4, 4), (4, 1), (4, 3), (4, 6), (8, 8)])
def test_windows_begin_and_end_with_the_video(frames: int, window: int, stride: int) -> None:
    windows = plan_windows(Timing(frames, 10.0), window, stride)
    assert windows.shape[1] == window
    assert windows[0, 0] == 0
    assert windows[-1, -1] == frames - 1
    assert (np.diff(windows[:, 0]) <= stride).all()
    assert (np.diff(windows[:, 0]) > 0).all()
    if stride <= window:
        assert set(windows.flatten().tolist()) == set(range(frames))


def test_windows_follow_the_clock() -> None:
    assert plan_windows(Timing(20, 10.0), 4, 4, fps=5.0)[0].tolist() == [0, 2, 4, 6]
    assert plan_windows(Timing(20, 10.0), 4, 4, step=3).tolist() == [[0, 3, 6, 9], [9, 12, 15, 18]]
    slow = plan_windows(Timing(4, 2.0), 4, 4, fps=4.0)  # slower than asked for: frames are repeated
    assert slow.tolist() == [[0, 0, 1, 1], [2, 2, 3, 3]]
    uneven = Timing(4, 2.0, times=(0.0, 0.1, 1.0, 1.5))
    assert plan_windows(uneven, 4, 4, fps=2.0).tolist() == [[0, 1, 2, 3]]


def test_command_writes_resumes_and_refuses_a_mixture(folder: Path, tmp_path: Path, capsys: Any) -> None:
    output = tmp_path / "out"
    words = ["features", str(folder / "videos"), "--encoder", str(folder / "encoder"), "--output", str(output)]
    assert main([*words, "--stride", "2"]) == 0
    assert "2 videos, 0 already done" in capsys.readouterr().out
    found = load_file(output / "long.safetensors")
    assert found["features"].shape == (13, 8, 24)
    assert found["times"].shape == (13, 2)
    assert load_file(output / "short.safetensors")["frames"].tolist() == [[0, 1, 2, 2]]
    with safe_open(output / "long.safetensors", framework="pt") as file:
        assert file.metadata()["grid"] == "[2, 2, 2]"
    before = (output / "long.safetensors").stat().st_mtime_ns
    (output / "short.safetensors").unlink()
    assert main([*words, "--stride", "2"]) == 0
    assert "1 videos, 1 already done" in capsys.readouterr().out
    assert (output / "long.safetensors").stat().st_mtime_ns == before
    assert main([*words, "--stride", "3"]) == 2
    assert "made with another windows" in capsys.readouterr().err
    assert main([*words, "--stride", "3", "--overwrite"]) == 0


def test_attentive_pooling_is_the_vector_of_the_trained_query(folder: Path, tmp_path: Path, capsys: Any) -> None:
    encoder, head = load_the_encoder(folder), AttentiveHead(24, 2, 3)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    save_head(SavedHead(head, ("a", "b", "c"), "a test", hash_weights(encoder)), tmp_path / "probe")
    path, output = str(folder / "videos" / "long.mp4"), tmp_path / "out"
    words = ["features", path, "--encoder", str(folder / "encoder"), "--output", str(output), "--pool", "attentive"]
    assert main(words) == 2
    assert "--pool attentive and --head must be given together" in capsys.readouterr().err
    words += ["--head", str(tmp_path / "probe")]
    assert main([*words, "--layers", "0"]) == 2
    assert "drop --layers" in capsys.readouterr().err
    assert main(words) == 0
    tokens = extract_features(read_video(Path(path)), encoder, WindowConfig())["features"]
    found = load_file(output / "long.safetensors")["features"]
    assert found.shape == (7, 24)
    torch.testing.assert_close(found, head.pool(tokens), atol=1e-5, rtol=1e-5)
    torch.nn.init.zeros_(head.query_tokens)
    save_head(SavedHead(head, ("a", "b", "c"), "a test", hash_weights(encoder)), tmp_path / "probe")
    assert main(words) == 2
    assert "made with another head_sha256" in capsys.readouterr().err
    save_head(SavedHead(head, ("a", "b", "c"), "a test", "0" * 16), tmp_path / "probe")
    assert main(words) == 2
    assert "trained on the features of another encoder" in capsys.readouterr().err


def test_npz_holds_what_safetensors_holds(folder: Path, tmp_path: Path, capsys: Any) -> None:
    words = ["features", str(folder / "videos"), "--encoder", str(folder / "encoder"), "--output", str(tmp_path)]
    assert main(words) == 0
    assert main([*words, "--to", "npz"]) == 0
    stored = load_file(tmp_path / "long.safetensors")
    with np.load(tmp_path / "long.npz", allow_pickle=False) as arrays:
        assert set(arrays) == {*stored, "metadata"}
        for name, tensor in stored.items():
            assert np.array_equal(arrays[name], tensor.numpy())
    assert read_metadata(tmp_path / "long.npz") == read_metadata(tmp_path / "long.safetensors")
    capsys.readouterr()
    assert main([*words, "--to", "npz"]) == 0
    assert "0 videos, 2 already done" in capsys.readouterr().out
    assert main([*words, "--to", "npz", "--pool", "mean"]) == 2
    assert "made with another windows" in capsys.readouterr().err
    (tmp_path / "long.npz").write_bytes(b"PK\x03\x04 cut off")
    assert main([*words, "--to", "npz"]) == 2
    assert "long.npz is damaged" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.part"))


def test_unreadable_video_is_named_and_the_others_are_made(folder: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    videos = [str(tmp_path / "broken.mp4"), str(folder / "videos" / "short.mp4")]
    words = ["features", *videos, "--encoder", str(folder / "encoder"), "--output", str(tmp_path / "out")]
    assert main(words) == 2
    assert "1 of 2 videos could not be read" in capsys.readouterr().err
    assert (tmp_path / "out" / "short.safetensors").is_file()
    assert not list((tmp_path / "out").glob("*.part"))


def test_two_commands_that_write_features_into_one_folder_are_refused(
    folder: Path, tmp_path: Path, capsys: Any
) -> None:
    video, output = str(folder / "videos" / "short.mp4"), tmp_path / "out"
    with claim_folder(output, "features", ""):
        assert main(["features", video, "--encoder", str(folder / "encoder"), "--output", str(output)]) == 2
    assert f"{output} is in use by another features" in capsys.readouterr().err
    assert [path.name for path in output.iterdir()] == [".features.lock"]


def test_two_videos_of_one_name_get_a_file_each_inside_the_output(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "short.mp4").write_bytes(make_video(3))
    (tmp_path / "list.txt").write_text(f"../{tmp_path.name}/short.mp4\n{tmp_path}/short.mp4\n")
    videos = [str(tmp_path / "list.txt"), str(tmp_path / "short.mp4"), str(folder / "videos" / "short.mp4")]
    before = set(tmp_path.rglob("*.safetensors"))
    assert main(["features", *videos, "--encoder", str(folder / "encoder"), "--output", str(tmp_path / "out")]) == 0
    made = {path for path in tmp_path.parent.rglob("*.safetensors") if "test_two_videos" in str(path)} - before
    assert len(made) >= 3
    assert all(path.is_relative_to(tmp_path / "out") for path in made)


@pytest.mark.parametrize("to", ["safetensors", "npz"])
def test_table_of_features_goes_into_pandas_and_scikit_learn(
    folder: Path, tmp_path: Path, capsys: Any, to: str
) -> None:
    pandas = pytest.importorskip("pandas")
    from sklearn.neighbors import KNeighborsClassifier

    for label in ("cut", "push"):
        (tmp_path / "videos" / label).mkdir(parents=True)
        for name in ("long", "short"):
            content = (folder / "videos" / f"{name}.mp4").read_bytes()
            (tmp_path / "videos" / label / f"{name}.mp4").write_bytes(content)
    file = tmp_path / "tables" / "features.parquet"
    words = [
        "features",
        str(tmp_path / "videos"),
        "--encoder",
        str(folder / "encoder"),
        "--output",
        str(tmp_path / "o"),
    ]
    words += ["--to", to, "--pool", "mean", "--table", str(file)]
    assert main(words) == 0
    assert "16 rows, one per window, with 24 features each" in capsys.readouterr().out
    table = pandas.read_parquet(file)
    assert list(table.columns[:6]) == ["video", "label", "window", "start", "end", "f0"]
    assert set(table.video) == {f"{label}/{name}.mp4" for label in ("cut", "push") for name in ("long", "short")}
    assert table[table.video == "cut/long.mp4"].window.tolist() == list(range(7))
    x, y = table.filter(regex=r"^f\d+$"), table.label
    assert KNeighborsClassifier(1).fit(x, y).predict(x).shape == (16,)
    expected = extract_features(
        read_video(folder / "videos" / "long.mp4"), load_the_encoder(folder), WindowConfig(pool="mean")
    )
    np.testing.assert_array_equal(x[table.video == "push/long.mp4"].to_numpy(), expected["features"].numpy())


def test_table_needs_vectors_and_its_ending(folder: Path, tmp_path: Path, capsys: Any) -> None:
    words = ["features", str(folder / "videos"), "--encoder", str(folder / "encoder"), "--output", str(tmp_path / "o")]
    assert main([*words, "--table", "t.parquet"]) == 2
    assert "add --pool mean" in capsys.readouterr().err
    assert main([*words, "--table", "t.csv", "--pool", "mean"]) == 2
    assert "must end in .parquet" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_settings_are_checked() -> None:
    for settings in ({"stride": -1}, {"batch": 0}, {"step": 0}, {"fps": -1.0}):
        with pytest.raises(ValueError, match=f"--{next(iter(settings))} must"):
            WindowConfig(**settings)  # type: ignore[arg-type]


def test_middle_of_a_video_is_the_clip_to_compare_on(folder: Path) -> None:
    assert read_clip(str(folder / "videos" / "short.mp4"), CONFIG).shape == (1, 4, 32, 32, 3)


def test_processes_started_together_share_the_videos(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["features", str(folder / "videos"), "--encoder", str(folder / "encoder"), "--output", str(tmp_path)]
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in (1, 0):
        monkeypatch.setenv("RANK", str(rank))
        assert main(words) == 0
        assert "1 videos, 0 already done" in capsys.readouterr().out
        assert len(list(tmp_path.rglob("*.safetensors"))) == 2 - rank
