"""V-JEPA 1 and 2 as their public trainers run: masks, mask tokens, schedules, initial weights, twelve steps in fp64."""

import json
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from batches import losses_by_hand, make_batch
from torch import Tensor
from torch.nn import functional

from vjepa.encoder import Encoder, EncoderConfig
from vjepa.formats.accounting import Pretrained, start_from
from vjepa.jepa import JEPA, JepaConfig
from vjepa.mask_lengths import draw_enough
from vjepa.masks import ClipRandom, MaskConfig, Masks, draw_all, draw_masks, hide_blocks
from vjepa.optim import OptimConfig, lr_schedule, weight_decay_schedule
from vjepa.pixels import normalise
from vjepa.predictor import Predictor, PredictorConfig
from vjepa.targets import TeacherConfig

GOLDEN = Path(__file__).parent / "golden_published.json"
SHORT = MaskConfig(num_blocks=8, spatial_scale=(0.15, 0.15), drop="last")
LONG = MaskConfig(num_blocks=2, spatial_scale=(0.7, 0.7), drop="last")


def by_time_step(index: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """Share of the cells of each time step that are in index [B, K]."""
    t, h, w = grid
    return torch.bincount(index.flatten() // (h * w), minlength=t) / (len(index) * h * w)


def test_published_long_range_masks_show_early_frames_and_ask_for_all_but_the_last() -> None:
    grid = (8, 14, 14)
    drawn = [draw_masks(LONG, grid, torch.arange(24) + 24 * batch, 0) for batch in range(150)]
    context = torch.stack([by_time_step(masks.context, grid) for masks in drawn]).mean(0)
    target = torch.stack([by_time_step(masks.target, grid) for masks in drawn]).mean(0)
    public = torch.tensor([0.19, 0.16, 0.09, 0.05, 0.02, 0.01, 0.008, 0.008])  # measured on the public generator
    torch.testing.assert_close(context, public, atol=0.025, rtol=0)
    assert target[0] == pytest.approx(0.81, abs=0.02)
    assert target[7] == pytest.approx(0.19, abs=0.03)


def test_dropped_at_random_every_time_step_keeps_the_same_share() -> None:
    grid = (8, 14, 14)
    fixed = replace(LONG, drop="random", lengths_of_batch=24, borrow=False)
    context = by_time_step(draw_masks(fixed, grid, torch.arange(300), 0).context, grid)
    torch.testing.assert_close(context, torch.full((8,), 0.064), atol=0.006, rtol=0)


@pytest.mark.parametrize(
    ("side", "clips", "short", "long"),
    [  # means of a simulation of the paper's sampling without our code: 1,000 batches, or 8,000 of one clip;
        # standard error at most 0.0014
        (14, 24, (0.236, 0.479), (0.063, 0.703)),
        (16, 12, (0.266, 0.497), (0.079, 0.712)),
        (14, 1, (0.372, 0.628), (0.188, 0.812)),
    ],
)
def test_fixed_lengths_follow_grid_and_batch(
    side: int, clips: int, short: tuple[float, float], long: tuple[float, float]
) -> None:
    for mask, wanted in ((SHORT, short), (LONG, long)):
        config = replace(mask, lengths_of_batch=clips, drop="random")
        masks = draw_masks(config, (1, side, side), torch.arange(2), 0)
        found = masks.context.shape[1] / side**2, masks.target.shape[1] / side**2
        assert found == pytest.approx(wanted, abs=0.015)


def test_a_batch_has_one_size_of_boxes_and_fixed_lengths_one_for_each_clip() -> None:
    def areas(config: MaskConfig) -> set[int]:
        return set(hide_blocks(config, (1, 14, 14), ClipRandom(0, torch.arange(60))).sum(1).tolist())

    one = MaskConfig(num_blocks=1, spatial_scale=(0.1, 0.5))
    assert len(areas(one)) == 1
    assert len(areas(replace(one, lengths_of_batch=24))) > 10


@pytest.mark.parametrize("mask", [SHORT, LONG], ids=["short", "long"])
def test_without_borrowing_a_context_never_shows_a_cell_that_is_hidden(mask: MaskConfig) -> None:
    """Boxes span all time, so a cell with a target token in any frame must have no context token in another."""

    def both(config: MaskConfig) -> Tensor:
        masks = draw_masks(config, (2, 14, 14), torch.arange(1500), 0)
        seen, asked = torch.zeros(2, 1500, 196, dtype=torch.bool)
        seen.scatter_(1, masks.context % 196, True)
        asked.scatter_(1, masks.target % 196, True)
        return (seen & asked).any(1)

    fixed = replace(mask, drop="random", lengths_of_batch=24)
    assert both(fixed).float().mean() > 0.02
    assert not both(replace(fixed, borrow=False)).any()


def test_a_redrawn_mask_depends_on_its_clip_alone() -> None:
    config = replace(LONG, drop="random", lengths_of_batch=24, borrow=False)
    together = draw_masks(config, (1, 14, 14), torch.arange(200), 0)
    for first in (0, 77):
        apart = draw_masks(config, (1, 14, 14), torch.arange(first, 200), 0)
        assert torch.equal(together.context[first:], apart.context)
        assert torch.equal(together.target[first:], apart.target)
    assert not config.follows_batch
    assert LONG.follows_batch


def test_a_mask_that_is_never_long_enough_becomes_a_spare() -> None:
    hidden = torch.tensor([[True, True, False, False], [True, False, False, False]])
    spares = torch.tensor([[False, False, True, True]])
    found = draw_enough(lambda random: hidden, hidden, (2, 2), spares, (torch.arange(2), 0))
    assert found.tolist() == [hidden[0].tolist(), spares[0].tolist()]


def test_lengths_that_no_mask_leaves_are_refused() -> None:
    with pytest.raises(ValueError, match=r"masks.far: 98 context and 98 target tokens are wanted, but none of"):
        draw_all({"far": replace(LONG, keep=0.5, predict=0.5, borrow=False)}, (1, 14, 14), torch.arange(2), 0)
    with pytest.raises(ValueError, match=r"masks.lengths_of_batch must be at least 1 clip and replaces"):
        MaskConfig(keep=0.2, predict=0.2, lengths_of_batch=24)


def make_predictor(**values) -> Predictor:
    encoder = EncoderConfig(size="custom", width=24, depth=1, heads=2, patch=8, frames=4, crop=32)
    torch.manual_seed(0)
    predictor = Predictor(PredictorConfig(width=12, depth=1, heads=2, mask_tokens=2, **values), encoder)
    for number, token in enumerate(predictor.mask_tokens):
        torch.nn.init.constant_(token, number + 1.0)
    return predictor


def test_masks_of_a_clip_share_a_token_chosen_by_its_length() -> None:
    context, half = torch.randn(1, 16, 24), torch.arange(16)[None]
    masks = [Masks(half, half + 16)] * 2
    twice = torch.cat([context, context], 1)
    first, second = make_predictor(mask_token="clip").hidden(twice, masks)
    assert torch.equal(first, second)
    apart, other = make_predictor().hidden(twice, masks)
    assert torch.equal(apart, first)
    assert not torch.allclose(other, first)
    by_length = make_predictor(mask_token="clip", token_frames=(8, 4))
    torch.testing.assert_close(by_length.hidden(twice, masks)[0], other)
    with pytest.raises(ValueError, match="got a clip of 2 frames"):
        by_length.hidden(twice, masks, grid=(1, 4, 8))
    with pytest.raises(ValueError, match="token_frames needs predictor.mask_token=clip"):
        PredictorConfig(token_frames=(4,))


def test_tokens_beside_the_shared_one_stay_zero(tiny: JepaConfig) -> None:
    model = JEPA(replace(tiny, predictor=replace(tiny.predictor, mask_token="clip")))
    assert [token.requires_grad for token in model.predictor.mask_tokens] == [True, False]
    model.training_step(make_batch(0), 0).backward()
    assert model.predictor.mask_tokens[0].grad.any()
    assert model.predictor.mask_tokens[1].grad is None


def test_a_file_with_a_shared_token_cannot_start_a_run_with_one_for_each_mask(tiny: JepaConfig) -> None:
    source = JEPA(replace(tiny, predictor=replace(tiny.predictor, mask_token="clip")))
    torch.nn.init.ones_(source.predictor.mask_tokens[0])
    found = Pretrained(source.context_encoder, source.predictor, "theirs.pt")
    begun = JEPA(tiny)
    with pytest.raises(ValueError, match=r"theirs.pt was trained with one mask token for all masks"):
        start_from(found, begun.context_encoder, begun.predictor)
    again = JEPA(source.config)
    start_from(found, again.context_encoder, again.predictor)
    assert torch.equal(again.predictor.mask_tokens[0], source.predictor.mask_tokens[0])


@pytest.mark.parametrize(("init", "last"), [("plain", 0.0200), ("scaled", 0.0041)])
def test_initial_weights_of_the_last_block(init: str, last: float) -> None:
    """V-JEPA 1's trainer draws all linear layers again, which undoes the division by sqrt(2 l): 0.02 / sqrt(24)."""
    encoder = Encoder(EncoderConfig(size="tiny", init=init, frames=2, crop=16))
    assert float(encoder.blocks[-1].attn.proj.weight.std()) == pytest.approx(last, rel=0.03)
    assert float(encoder.blocks[-1].attn.qkv.weight.std()) == pytest.approx(0.02, rel=0.03)


def test_lr_and_weight_decay_of_update_i_are_those_of_step_i_plus_one() -> None:
    """V-JEPA 1: 90k updates, warm-up 12k, schedules for 112,500."""
    published = OptimConfig(ahead=1, clip_delay=300)
    lr, decay = lr_schedule(published, 90_000), weight_decay_schedule(published, 90_000)
    assert lr(0) == pytest.approx(2e-4 + 4.25e-4 / 12_000)
    assert lr(11_999) == pytest.approx(6.25e-4)
    turn = (1 + math.cos(math.pi * 78_000 / 100_500)) / 2
    assert lr(89_999) == pytest.approx(1e-6 + 6.24e-4 * turn)
    assert decay(0) == pytest.approx(0.04, abs=1e-9)
    assert decay(89_999) == pytest.approx(0.4 - 0.36 * (1 + math.cos(math.pi * 0.8)) / 2)


def test_clipping_begins_an_epoch_after_the_warm_up() -> None:
    optim = OptimConfig(warmup_steps=12_000, clip_delay=300)
    assert [optim.clips_at(step, 90_000) for step in (0, 12_000, 12_299, 12_300)] == [False, False, False, True]
    assert OptimConfig(clip_after_warmup=False, clip_delay=300).clips_at(0, 90_000)
    assert not OptimConfig(clip=0.0).clips_at(89_999, 90_000)


VERSIONS = ("vjepa1", "vjepa2")


def published(version: str) -> JepaConfig:
    """The recipe of a version at the size of a test; its 12 updates cross the warm-up and the begin of clipping."""
    first = version == "vjepa1"
    return JepaConfig(
        encoder=EncoderConfig(
            size="custom", width=24, depth=2, heads=2, patch=8, frames=4, crop=64,
            positions="sincos" if first else "rotary", rotary_order="tiled", init="plain" if first else "scaled",
        ),
        predictor=PredictorConfig(width=12, depth=2, heads=2, mask_token="mask" if first else "clip"),
        masks={"short_range": SHORT, "long_range": LONG},
        teacher=TeacherConfig(momentum=0.998, final_momentum=1.0)
        if first
        else TeacherConfig(momentum=0.99925, final_momentum=0.99925),
        optim=OptimConfig(warmup_steps=4, ahead=1, clip_delay=2, clip=0.05)
        if first
        else OptimConfig(
            lr=5.25e-4, start_lr=1e-4, final_lr=5.25e-4, warmup_steps=4, final_weight_decay=0.04, ahead=1, clip=0.0
        ),
        steps=12,
    )  # fmt: skip


def clips_of(step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    return normalise(torch.randint(0, 256, (4, 4, 64, 64, 3), dtype=torch.uint8, generator=generator)).double()


def train_ours(config: JepaConfig) -> tuple[JEPA, list[float]]:
    """Twelve updates by the training module, in fp64."""
    model = JEPA(config).double()
    losses = losses_by_hand(model, map(clips_of, range(12)))
    return model, losses


def train_by_the_paper(config: JepaConfig) -> tuple[JEPA, list[float]]:
    """The same by the equations: one pass for each mask, written-out schedules, two groups for each module."""
    model = JEPA(config).double()
    encoder, predictor, teacher = model.context_encoder, model.predictor, model.target_encoder.encoder
    optim, first = config.optim, config.encoder.positions == "sincos"
    parameters = [value for module in (encoder, predictor) for value in module.parameters() if value.requires_grad]
    decayed = [value for value in parameters if value.ndim > 1]
    groups = [{"params": decayed}, {"params": [value for value in parameters if value.ndim == 1], "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8)
    losses = []
    for step in range(12):
        done, length = step + 1, 15
        cosine = 0.5 * (1 + math.cos(math.pi * (done - 4) / (length - 4)))
        warm = optim.start_lr + (optim.lr - optim.start_lr) * done / 4
        for group in adam.param_groups:
            group["lr"] = warm if done < 4 else optim.final_lr + (optim.lr - optim.final_lr) * cosine
        turn = 0.5 * (1 + math.cos(math.pi * done / length))
        adam.param_groups[0]["weight_decay"] = optim.final_weight_decay + (0.04 - optim.final_weight_decay) * turn
        video, errors = clips_of(step), []
        with torch.no_grad():
            goal = functional.layer_norm(teacher(video), (24,))
        for kind, masks in enumerate(draw_all(config.masks, (2, 8, 8), torch.arange(4) + 4 * step, 0)):
            guess = predictor(encoder(video, masks.context), masks.context, masks.target, kind if first else 0)
            errors.append((guess - goal.gather(1, masks.target[..., None].expand(-1, -1, 24))).abs().mean())
        loss = (errors[0] + errors[1]) / 2
        adam.zero_grad()
        loss.backward()
        if first and step >= 6:
            for module in (encoder, predictor):
                torch.nn.utils.clip_grad_norm_(module.parameters(), 0.05)
        adam.step()
        momentum = config.teacher.momentum + (config.teacher.final_momentum - config.teacher.momentum) * step / length
        with torch.no_grad():
            for mine, theirs in zip(teacher.parameters(), encoder.parameters(), strict=True):
                mine.mul_(momentum).add_(theirs, alpha=1 - momentum)
        losses.append(float(loss))
    return model, losses


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `global_step` be set by hand, without a trainer."""
    monkeypatch.setattr(JEPA, "global_step", property(lambda model: getattr(model, "trainer_step", 0)))


@pytest.mark.parametrize("version", VERSIONS)
def test_twelve_updates_are_those_of_the_equations_and_of_the_stored_curve(version: str, counted: None) -> None:
    """GOLDEN=1 stores the curve anew."""
    config = published(version)
    ours, losses = train_ours(config)
    theirs, expected = train_by_the_paper(config)
    assert losses == pytest.approx(expected, rel=1e-9)
    for name, value in theirs.objective.state_dict().items():
        torch.testing.assert_close(ours.objective.state_dict()[name], value, atol=1e-9, rtol=1e-7)
    stored = json.loads(GOLDEN.read_text()) if GOLDEN.is_file() else {}
    if os.environ.get("GOLDEN"):
        stored[version] = losses
        GOLDEN.write_text(json.dumps(stored, indent=1) + "\n")
    assert losses == pytest.approx(stored[version], rel=1e-7)
