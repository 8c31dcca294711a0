"""Decoded predictions: nothing leaks, nothing else is trained, and the measures are what they say."""

import json
from dataclasses import replace
from pathlib import Path

import av
import pytest
import torch
from PIL import Image

from launch.__main__ import main
from launch.seeing.decoder import DecoderConfig, build_decoder, cut_pixels, join_pixels
from launch.seeing.fit import TRAINED, DecodeConfig, Decoders, split_samples
from launch.seeing.imagination import Imagination, imagination_of, load_imagination
from launch.seeing.measure import MEAN_FRAME, cheap_guesses, measure_pixels
from launch.seeing.pictures import imagine_panels
from vjepa.config import JepaConfig
from vjepa.encoder import EncoderConfig
from vjepa.formats.meta import save_meta
from vjepa.jepa import JEPA
from vjepa.masks import MaskConfig
from vjepa.patches import gather_tokens
from vjepa.pixels import normalise
from vjepa.predictor import PredictorConfig

ENCODER = EncoderConfig(size="custom", width=24, depth=2, heads=2, patch=8, tubelet=2, frames=8, crop=32)
MASKS = {"future": MaskConfig(kind="future"), "tubes": MaskConfig(kind="tubes")}
SHAPE = DecoderConfig("convolutions", 16, 1, 24, ENCODER.grid, ENCODER.tubelet, ENCODER.patch)


def make_imagination(**changes: object) -> Imagination:
    predictor = PredictorConfig(width=24, depth=1, heads=2)
    config = JepaConfig(encoder=ENCODER, predictor=predictor, masks=MASKS, steps=10)
    return imagination_of(JEPA(replace(config, **changes)), "a test")  # type: ignore[arg-type]


def make_clips(count: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 8, 32, 32, 3), generator=generator, dtype=torch.uint8)


def make_decoders() -> Decoders:
    return Decoders({name: build_decoder(SHAPE, number) for number, name in enumerate(TRAINED)}, 0)


def test_cut_pixels_come_back_where_they_were() -> None:
    clips = make_clips()
    torch.testing.assert_close(join_pixels(cut_pixels(clips, SHAPE), SHAPE) * 255, clips.float())


@pytest.mark.parametrize("kind", ["convolutions", "transformer"])
def test_no_gradient_of_a_decoder_reaches_features_or_encoder(kind: str) -> None:
    imagination = make_imagination()
    video = normalise(make_clips())
    imagination.encoder.requires_grad_(True)  # were the features not detached, they would get a gradient
    mask = imagination.draw("future", 2, ENCODER.grid)
    features = gather_tokens(imagination.encoder(video), mask.target)
    decoder = build_decoder(replace(SHAPE, kind=kind), 0)  # type: ignore[arg-type]
    decoder(features, mask.target).square().mean().backward()
    assert all(parameter.grad is None for parameter in imagination.encoder.parameters())
    assert all(parameter.grad is not None for parameter in decoder.parameters())


def test_loading_freezes_every_network() -> None:
    imagination = make_imagination()
    modules = (imagination.encoder, imagination.teacher, imagination.predictor)
    assert not any(parameter.requires_grad for module in modules for parameter in module.parameters())
    assert not any(module.training for module in modules)


def test_hidden_pixels_cannot_change_what_is_imagined() -> None:
    imagination, clips = make_imagination(), make_clips()
    changed = clips.clone()
    changed[:, 4:] = 255 - changed[:, 4:]
    decoders = make_decoders()
    for one, two in zip(
        imagine_panels(imagination, decoders, clips, "future"),
        imagine_panels(imagination, decoders, changed, "future"),
        strict=True,
    ):
        for title, frames in one.items():
            if title.startswith("imagined"):
                assert (frames == two[title]).all(), title
        assert (one["clip"] != two["clip"]).any()


def test_true_pixels_measure_as_identical_and_wrong_ones_do_not() -> None:
    truth = cut_pixels(make_clips(), SHAPE)
    mask = make_imagination().draw("tubes", 2, ENCODER.grid)
    wanted = gather_tokens(truth, mask.target)
    same = measure_pixels(wanted, mask.target, truth, SHAPE)
    assert (same.ssim > 0.9999).all()
    wrong = measure_pixels((wanted + 0.1).clamp(0, 1), mask.target, truth, SHAPE)
    assert (wrong.psnr > 20).all()  # an error of at most 0.1
    assert (wrong.psnr < 21).all()
    assert (wrong.ssim < same.ssim).all()


def test_baselines_use_visible_frames_alone() -> None:
    clips = torch.full((1, 8, 32, 32, 3), 50, dtype=torch.uint8)
    clips[:, 3] = 100  # the last visible one
    clips[:, 4:] = 200
    mask = make_imagination().draw("future", 1, ENCODER.grid)
    found = cheap_guesses(cut_pixels(clips, SHAPE), mask.target, SHAPE)
    torch.testing.assert_close(found[MEAN_FRAME] * 255, torch.full_like(found[MEAN_FRAME], 62.5))
    nearest = found["nearest visible frame"] * 255
    torch.testing.assert_close(nearest, torch.full_like(nearest, 100))


def test_positions_never_seen_get_the_mean_colour() -> None:
    clips = make_clips(1)
    mask = make_imagination().draw("tubes", 1, ENCODER.grid)
    tokens = cut_pixels(clips, SHAPE)
    seen = gather_tokens(tokens, mask.context).view(-1, 3, 2 * 64).mean((0, 2))
    for guess in cheap_guesses(tokens, mask.target, SHAPE).values():
        torch.testing.assert_close(guess.view(-1, 3, 2 * 64).mean((0, 2)), seen)


def test_held_out_clips_are_never_trained_on() -> None:
    train, test = split_samples(50, 0.2, 3)
    assert sorted(train + test) == list(range(50))
    assert len(test) == 10
    with pytest.raises(ValueError, match="too few to hold out"):
        split_samples(2, 0.1, 0)


def test_a_run_is_decoded_and_shown_by_command(
    quick: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*quick, "run.steps=2", "masks.behind.kind=tubes", "data.frames=8", "encoder.tubelet=4"]
    config = tmp_path / "empty.yaml"
    config.write_text("{}\n")
    assert main(["train", str(config), *words]) == 0
    run = tmp_path / "run"
    assert main(["decode", "fit", str(run), "steps=3", "width=8", "depth=1", "data.workers=0"]) == 0
    results = json.loads((run / "decode" / "results.json").read_text())["results"]
    assert list(results) == ["ahead", "behind"]
    rows = {row["features"]: row for row in results["ahead"] if row["class"] == "all"}
    assert len(rows) == 7
    assert rows[MEAN_FRAME]["gain"] == 0
    assert "overflow-x" in (run / "decode" / "report.html").read_text()
    video = make_video(tmp_path / "clip.mp4")
    assert main(["decode", "show", str(run), str(video), "--output", str(tmp_path / "pictures")]) == 0
    stem = tmp_path / "pictures" / f"{video.stem}-ahead"
    with Image.open(stem.with_suffix(".gif")) as picture:
        assert picture.n_frames == 8  # type: ignore[attr-defined]
    assert stem.with_suffix(".png").stat().st_size > 1000
    with av.open(str(stem.with_suffix(".mp4"))) as container:
        assert sum(1 for _ in container.decode(video=0)) == 8
    (tmp_path / "text.mp4").write_text("no video")
    capsys.readouterr()
    assert main(["decode", "show", str(run), str(tmp_path / "text.mp4")]) == 2
    assert f"{tmp_path / 'text.mp4'}: not a video" in capsys.readouterr().err


def make_video(path: Path) -> Path:
    from data.generated.videos import encode_clip

    encode_clip(make_clips()[0].numpy(), path, 8, 20)
    return path


def test_official_weights_with_a_predictor_are_imagined_with(tmp_path: Path) -> None:
    encoder = replace(ENCODER, width=48)
    predictor = PredictorConfig(width=24, depth=1, heads=2)
    model = JEPA(JepaConfig(encoder=encoder, predictor=predictor, masks=MASKS, steps=10))
    save_meta(model.trained_encoder, model.predictor, tmp_path)
    imagination = load_imagination(next(tmp_path.glob("checkpoint.*")))
    assert list(imagination.masks) == ["short_range", "long_range"]
    assert imagination.width == 48


def test_an_objective_without_predictions_is_refused() -> None:
    with pytest.raises(ValueError, match="predicts no hidden tokens"):
        make_imagination(objective="views")


def test_a_setting_that_cannot_work_is_named() -> None:
    with pytest.raises(ValueError, match="held_out"):
        DecodeConfig(held_out=1.0)
