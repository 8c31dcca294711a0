"""Several futures by command: errors of the best of K never rise, and shares are shares."""

import json
from pathlib import Path

import pytest
import torch

from data.generated.forks import ForksConfig, render_forks
from data.generated.kinds import find_kind
from data.generated.videos import write_kind
from launch.seeing.futures import measure_futures
from launch.seeing.imagination import Imagination, imagination_of
from launch.seeing.pairs import read_forks
from vjepa.config import JepaConfig
from vjepa.encoder import EncoderConfig
from vjepa.jepa import JEPA
from vjepa.latent import LatentConfig
from vjepa.masks import MaskConfig
from vjepa.predictor import PredictorConfig

ENCODER = EncoderConfig(size="custom", width=24, depth=1, heads=2, patch=16, tubelet=4, frames=8, crop=32)


def make_imagination(dims: int | None) -> Imagination:
    predictor = PredictorConfig(width=24, depth=1, heads=2, latent=LatentConfig(dims=dims))
    masks = {"future": MaskConfig(kind="future")}
    return imagination_of(JEPA(JepaConfig(encoder=ENCODER, predictor=predictor, masks=masks, steps=10)), "a test")


def make_clips(count: int) -> torch.Tensor:
    config = ForksConfig(size=32, frames=8)
    return torch.stack([torch.from_numpy(render_forks(config, index, 0).frames) for index in range(count)])


def test_the_error_of_the_best_of_k_never_rises_and_shares_are_shares() -> None:
    imagination = make_imagination(2)
    found = measure_futures(imagination, make_clips(12), 0, draws=(1, 2, 4), batch=5)
    assert (found.best[2] <= found.best[1]).all()
    assert (found.best[4] <= found.best[2]).all()
    assert found.branches.shape == (6, 4)
    plain = found.plain()
    assert 0 <= plain["share of the second branch"][0] <= 1
    assert plain["pasts"] == 6
    json.dumps(plain)


def test_the_same_seed_draws_the_same_futures() -> None:
    imagination, clips = make_imagination(2), make_clips(4)
    first, second, third = (measure_futures(imagination, clips, seed, draws=(1, 2)).best[1] for seed in (0, 0, 1))
    assert (first == second).all()
    assert (first != third).any()


def test_a_predictor_without_a_variable_is_refused() -> None:
    with pytest.raises(ValueError, match="has no latent variable"):
        measure_futures(make_imagination(None), make_clips(4), 0)


def test_forks_are_read_in_twos(tmp_path: Path) -> None:
    write_kind(find_kind("forks"), ForksConfig(size=32, frames=8), tmp_path / "videos", 5, 0)
    videos = read_forks(tmp_path)
    assert [(path.parent.name, path.stem) for path in videos] == [
        ("left", "000000"), ("right", "000001"), ("left", "000002"), ("right", "000003"),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="generate forks"):
        read_forks(tmp_path / "videos" / "left")
