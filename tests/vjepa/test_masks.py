"""Masks: what they promise for every kind, and the published statistics."""

from dataclasses import replace

import pytest
import torch

from vjepa.masks import LONG_RANGE, SHORT_RANGE, ClipRandom, MaskConfig, draw_masks, hide_blocks
from vjepa.registry import MASKS

GRID = (4, 6, 6)
TOKENS = 4 * 6 * 6
KINDS = [
    *(MaskConfig(kind=kind) for kind in MASKS),
    *(MaskConfig(kind=kind, keep=0.2, predict=0.4) for kind in MASKS),
    MaskConfig(drop="last"),
    MaskConfig(num_blocks=2, spatial_scale=(0.7, 0.7), max_keep=3),
    MaskConfig(num_blocks=2, spatial_scale=(0.2, 0.4), max_temporal_keep=0.5),
]


@pytest.mark.parametrize("config", KINDS, ids=str)
def test_masks_partition_the_clip(config: MaskConfig) -> None:
    masks = draw_masks(config, GRID, torch.arange(40), seed=3)
    assert masks.context.shape[0] == masks.target.shape[0] == 40
    for context, target in zip(masks.context, masks.target, strict=True):
        both = torch.cat([context, target])
        assert len(both.unique()) == len(both), "context and target overlap"
        assert both.min() >= 0
        assert both.max() < TOKENS
        assert (context.diff() > 0).all()
        assert (target.diff() > 0).all()


@pytest.mark.parametrize("config", [SHORT_RANGE, LONG_RANGE])
def test_lengths_are_shares_whatever_the_batch(config: MaskConfig) -> None:
    lengths = {draw_masks(config, (8, 14, 14), torch.arange(batch), 0).context.shape[1] for batch in (1, 3, 24)}
    assert lengths == {round(1568 * config.keep)}


@pytest.mark.parametrize(
    "config", [SHORT_RANGE, replace(SHORT_RANGE, kind="future"), MaskConfig(kind="random", keep=0.3, predict=0.3)]
)
def test_masks_depend_on_the_clip_not_on_its_batch(config: MaskConfig) -> None:
    together = draw_masks(config, GRID, torch.arange(8), seed=1)
    apart = draw_masks(config, GRID, torch.arange(4, 8), seed=1)
    assert torch.equal(together.context[4:], apart.context)
    assert torch.equal(together.target[4:], apart.target)


def test_masks_differ_between_clips_seeds_and_kinds() -> None:
    def context(position: int, seed: int, kind: int) -> list[int]:
        return draw_masks(SHORT_RANGE, GRID, torch.tensor([position]), seed, kind).context[0].tolist()

    drawn = [context(position, seed, kind) for position in range(4) for seed in range(3) for kind in range(2)]
    assert len({tuple(indices) for indices in drawn}) == len(drawn)


def test_blocks_span_all_time() -> None:
    hidden = hide_blocks(SHORT_RANGE, GRID, ClipRandom(0, torch.arange(20))).view(20, 4, 36)
    assert (hidden == hidden[:, :1]).all()


def test_blocks_are_boxes_of_the_drawn_area() -> None:
    config = MaskConfig(num_blocks=1, spatial_scale=(0.15, 0.15))
    hidden = hide_blocks(config, (1, 14, 14), ClipRandom(0, torch.arange(200))).view(200, 14, 14)
    for plane in hidden:
        rows, columns = plane.any(1).sum(), plane.any(0).sum()
        assert plane.sum() == rows * columns, "one block must be one full box"
        assert 0.75 * 0.6 <= rows / columns <= 1.5 * 1.7
        assert 18 <= rows * columns <= 42  # 29 tokens before the sides are rounded


def test_context_is_never_empty_even_where_boxes_cover_the_plane() -> None:
    config = MaskConfig(num_blocks=40, spatial_scale=(0.9, 0.9))
    hidden = hide_blocks(config, GRID, ClipRandom(0, torch.arange(200)))
    assert (~hidden).any(1).all()


@pytest.mark.parametrize(
    ("config", "batch", "keep", "predict"),
    [
        (SHORT_RANGE, 1, 0.375, 0.625),
        (SHORT_RANGE, 24, 0.235, 0.477),
        (LONG_RANGE, 1, 0.19, 0.81),
        (LONG_RANGE, 24, 0.069, 0.697),
    ],
)
def test_published_cut_has_the_published_statistics(
    config: MaskConfig, batch: int, keep: float, predict: float
) -> None:
    published = replace(config, keep=None, predict=None, drop="last")
    drawn = [draw_masks(published, (8, 14, 14), torch.arange(batch) + i * batch, 0) for i in range(200)]
    mean_keep = sum(masks.context.shape[1] for masks in drawn) / 200 / 1568
    mean_predict = sum(masks.target.shape[1] for masks in drawn) / 200 / 1568
    assert mean_keep == pytest.approx(keep, abs=0.02)
    assert mean_predict == pytest.approx(predict, abs=0.02)


def test_random_drop_spares_no_place_and_the_published_one_always_drops_the_last() -> None:
    def share_of_late_targets(drop: str) -> float:
        config = MaskConfig(drop=drop)
        masks = draw_masks(config, (8, 14, 14), torch.arange(24), 0)
        return float((masks.target >= 1568 - 196).float().mean())

    assert share_of_late_targets("random") > 0.1  # an eighth of the grid
    assert share_of_late_targets("last") < 0.1


def test_future_hides_the_end_and_past_the_beginning() -> None:
    future = draw_masks(MaskConfig(kind="future"), GRID, torch.arange(3), 0)
    past = draw_masks(MaskConfig(kind="past"), GRID, torch.arange(3), 0)
    assert future.context.max() < future.target.min()
    assert past.context.min() > past.target.max()


def test_uniform_numbers_are_uniform_and_independent_of_the_others() -> None:
    random = ClipRandom(0, torch.arange(2000))
    first, second = random.uniform(50), random.uniform(50)
    assert first.mean() == pytest.approx(0.5, abs=0.005)
    assert first.var() == pytest.approx(1 / 12, abs=0.002)
    assert abs(torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1]) < 0.02
    assert abs(torch.corrcoef(torch.stack([first[:-1].flatten(), first[1:].flatten()]))[0, 1]) < 0.02


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"spatial_scale": (0.7, 0.2)}, "masks.spatial_scale"),
        ({"keep": 0.6, "predict": 0.6}, "with a sum of at most 1"),
        ({"keep": 0.6}, "set together"),
        ({"num_blocks": 0}, "masks.num_blocks"),
        ({"max_temporal_keep": 0.0}, "masks.max_temporal_keep"),
    ],
)
def test_impossible_masks_are_refused_by_name(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MaskConfig(**wrong)


def test_a_grid_too_small_for_the_mask_is_refused() -> None:
    with pytest.raises(ValueError, match="leaves 0 context"):
        draw_masks(LONG_RANGE, (1, 2, 2), torch.arange(2), 0)


def test_halves_of_an_odd_grid_do_not_overlap() -> None:
    halves = MaskConfig(kind="random", hidden=(0.5, 0.5), keep=0.5, predict=0.5)
    masks = draw_masks(halves, (3, 7, 7), torch.arange(3), seed=0)  # 147 tokens: each half would round up to 74
    assert masks.context.shape[1] + masks.target.shape[1] == 147
    for context, target in zip(masks.context, masks.target, strict=True):
        assert not set(context.tolist()) & set(target.tolist())


def test_the_aspect_of_a_box_is_width_over_height() -> None:
    wide = MaskConfig(num_blocks=1, spatial_scale=(0.25, 0.25), aspect=(3.99, 4.0))
    hidden = hide_blocks(wide, (1, 16, 16), ClipRandom(0, torch.arange(4))).view(4, 16, 16)
    assert (hidden.any(1).sum(1) == 16).all()  # 64 places: 16 wide
    assert (hidden.any(2).sum(1) == 4).all()  # and 4 high
