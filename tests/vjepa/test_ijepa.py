"""I-JEPA against numbers and equations written here: masks, positions, a step, twelve updates, official files."""

import json
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from batches import losses_by_hand
from torch import Tensor
from torch.nn import functional

from vjepa.draws import ClipRandom
from vjepa.encoder import Encoder, EncoderConfig
from vjepa.formats.architecture import Hints
from vjepa.formats.loading import load_pretrained
from vjepa.formats.meta import load_meta, save_meta
from vjepa.formats.meta_training import Training, add_training, read_training
from vjepa.gauges import step_gauges
from vjepa.jepa import JEPA, JepaConfig
from vjepa.masks import MaskConfig, draw_masks
from vjepa.multiblock import draw_parts
from vjepa.objectives.ijepa import IjepaOptions
from vjepa.optim import OptimConfig
from vjepa.pixels import normalise
from vjepa.positions import sincos_table_2d
from vjepa.predictor import PredictorConfig
from vjepa.registry import MASKS
from vjepa.targets import TeacherConfig

GOLDEN = Path(__file__).parent / "golden_published.json"
MASK = MaskConfig(kind="multiblock", num_blocks=4, spatial_scale=(0.15, 0.2), drop="last")
SMALL = replace(MASK, options={"least": 4})


def plane(index: Tensor, side: int = 16) -> Tensor:
    """Token indices [B, K] as a picture [B, side, side] bool."""
    return torch.zeros(len(index), side * side, dtype=torch.bool).scatter_(1, index, True).view(-1, side, side)


def box_of(picture: Tensor) -> tuple[int, int, int, int]:
    """Top, left, height and width of the cells of a picture [h, w]."""
    y, x = picture.nonzero().unbind(1)
    return int(y.min()), int(x.min()), int(y.max() - y.min()) + 1, int(x.max() - x.min()) + 1


def test_targets_are_whole_boxes_of_the_published_sizes_and_the_context_has_none_of_them() -> None:
    for batch in range(20):
        parts = draw_parts(MASK, (1, 16, 16), torch.arange(8) + 8 * batch, 3)
        assert len(parts) == 4
        sizes = set()
        for part in parts:
            assert torch.equal(part.context, parts[0].context)
            assert not (plane(part.context) & plane(part.target)).any()
            for picture in plane(part.target):
                _, _, height, width = box_of(picture)
                assert height * width == part.target.shape[1], "a target is a whole box"
                sizes.add((height, width))
        assert len(sizes) == 1, "one size a batch"
        ((height, width),) = sizes
        fits = []
        for number in range(201):  # one number r gives area 0.15 + 0.05 r and aspect 0.75 + 0.75 r, as in the code
            area, ratio = int(256 * (0.15 + 0.05 * number / 200)), 0.75 + 0.75 * number / 200
            fits.append((round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))))
        assert (height, width) in fits


def test_the_context_is_the_published_square_without_the_targets() -> None:
    """At 16 x 16 the public code's context is always the first 15 x 15 cells; the last row and column are unused."""
    context, targets = MASKS.find("multiblock").divide(MASK, (1, 16, 16), _random(64))
    square = torch.zeros(16, 16, dtype=torch.bool)
    square[:15, :15] = True
    assert torch.equal(context.view(-1, 16, 16), square & ~targets.any(1).view(-1, 16, 16))
    assert not targets.view(-1, 4, 16, 16)[:, :, 15].any()
    reaching = replace(MASK, options={"reach": 1})
    context, targets = MASKS.find("multiblock").divide(reaching, (1, 16, 16), _random(64))
    assert targets.view(-1, 4, 16, 16)[:, :, 15].any()
    assert targets.view(-1, 4, 16, 16)[:, :, 0].any()


def test_too_small_a_context_keeps_the_last_targets_in_it() -> None:
    crowded = replace(MASK, num_blocks=12, options={"least": 120})
    context, targets = MASKS.find("multiblock").divide(crowded, (1, 16, 16), _random(32))
    counts = context.sum(1)
    assert counts.min() > 120
    assert (context & targets[:, 0]).sum() == 0, "the first target stays cut out"
    assert (context & targets[:, 11]).any(), "the last ones do not"


def test_lengths_are_those_of_the_shortest_and_the_last_tokens_are_dropped() -> None:
    clips = torch.arange(32)
    parts = draw_parts(MASK, (1, 16, 16), clips, 0)
    whole, _ = MASKS.find("multiblock").divide(MASK, (1, 16, 16), _random(32, 0))
    shortest = int(whole.sum(1).min())
    assert parts[0].context.shape == (32, shortest)
    for row, mine in zip(whole, parts[0].context, strict=True):
        assert mine.tolist() == row.nonzero()[:shortest, 0].tolist()
    alone = draw_parts(MASK, (1, 16, 16), clips[:1], 0)
    assert torch.equal(alone[0].target[0], parts[0].target[0]), "a box follows from the stream position"


def test_as_a_mask_of_other_objectives_it_hides_all_but_the_context() -> None:
    masks = draw_masks(MASK, (1, 16, 16), torch.arange(4), 0)
    assert not (plane(masks.context) & plane(masks.target)).any()
    assert masks.target.shape[1] > 100


def _random(count: int, seed: int = 7) -> ClipRandom:
    return ClipRandom(seed * 1009, torch.arange(count))


def test_the_table_of_images_has_the_width_first_and_sines_before_cosines() -> None:
    table = sincos_table_2d(8, (1, 3, 5))
    for row, column in ((0, 0), (1, 3), (2, 4)):
        angles = [
            [math.sin(p), math.sin(p / 100), math.cos(p), math.cos(p / 100)] for p in (column, row)
        ]  # frequencies 10000 ^ (0, -1/2)
        torch.testing.assert_close(table[5 * row + column], torch.tensor(angles[0] + angles[1]))
    torch.testing.assert_close(sincos_table_2d(8, (2, 3, 5)), table.repeat(2, 1))


def config_of(**values: object) -> JepaConfig:
    """64 tokens of width 24."""
    return JepaConfig(
        objective="ijepa",
        encoder=EncoderConfig(
            size="custom", width=24, depth=2, heads=2, patch=8, tubelet=1, frames=1, crop=64,
            positions="sincos_2d", init="plain",
        ),
        predictor=PredictorConfig(width=12, depth=2, heads=2, mask_token="clip"),
        masks={"image": SMALL},
        teacher=TeacherConfig(momentum=0.996, final_momentum=1.0),
        optim=OptimConfig(lr=1e-3, start_lr=2e-4, warmup_steps=4, stretch=1.0, ahead=1, clip=0.0),
        steps=12,
        **values,  # type: ignore[arg-type]
    )  # fmt: skip


def images_of(step: int, count: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    return normalise(torch.randint(0, 256, (count, 1, 64, 64, 3), dtype=torch.uint8, generator=generator)).double()


def loss_by_the_paper(model: JEPA, images: Tensor, samples: Tensor) -> Tensor:
    """One encoder pass over the context, one predictor pass for each target, smooth L1 against normalised targets."""
    encoder, predictor, teacher = model.context_encoder, model.predictor, model.target_encoder.encoder
    with torch.no_grad():
        goal = functional.layer_norm(teacher(images), (24,))
    errors = []
    for part in draw_parts(SMALL, (1, 8, 8), samples, model.config.seed):
        guess = predictor(encoder(images, part.context), part.context, part.target)
        error = (guess - goal.gather(1, part.target[..., None].expand(-1, -1, 24))).abs()
        errors.append(torch.where(error < 1, 0.5 * error.square(), error - 0.5).mean())
    return sum(errors) / 4


def test_loss_and_gradients_of_a_step_are_those_of_the_equations() -> None:
    model = JEPA(config_of()).double()
    model.watching = True
    loss = model.training_step(images_of(0), 0)
    loss.backward()
    mine = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()
    expected = loss_by_the_paper(model, images_of(0), torch.arange(4))
    expected.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-12)
    for name, value in model.named_parameters():
        if value.requires_grad:
            torch.testing.assert_close(mine[name], value.grad, atol=1e-12, rtol=1e-9)
    output = model.watched
    assert output is not None
    assert [one.name for one in output.predictions] == ["image_0", "image_1", "image_2", "image_3"]
    found = step_gauges(output, output.targets)
    assert found["lengths/image_2/context"] == output.predictions[0].context_index.shape[1] / 64


def test_a_hidden_patch_cannot_change_what_is_predicted() -> None:
    model = JEPA(config_of()).double()
    model.watching = True
    images = images_of(1)
    model.training_step(images, 0)
    before = model.watched
    assert before is not None
    cell = int(before.predictions[0].target_index[0, 0])
    row, column = divmod(cell, 8)
    images = images.clone()
    images[0, :, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = 5.0
    model.position = 0
    model.training_step(images, 0)
    after = model.watched
    assert after is not None
    for one, other in zip(before.predictions, after.predictions, strict=True):
        assert torch.equal(one.prediction, other.prediction)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `global_step` be set by hand, without a trainer."""
    monkeypatch.setattr(JEPA, "global_step", property(lambda model: getattr(model, "trainer_step", 0)))


def test_twelve_updates_are_those_of_the_equations_and_of_the_stored_curve(counted: None) -> None:
    """GOLDEN=1 stores the curve anew."""
    config = config_of()
    ours = JEPA(config).double()
    losses = losses_by_hand(ours, map(images_of, range(12)))
    theirs = JEPA(config).double()
    encoder, teacher = theirs.context_encoder, theirs.target_encoder.encoder
    trained = [value for part in (encoder, theirs.predictor) for value in part.parameters()]
    groups = [
        {"params": [value for value in trained if value.ndim > 1]},
        {"params": [value for value in trained if value.ndim == 1], "weight_decay": 0.0},
    ]
    adam, expected = torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8), []
    for step in range(12):
        done = step + 1
        cosine = 0.5 * (1 + math.cos(math.pi * (done - 4) / 8))
        for group in adam.param_groups:
            group["lr"] = 2e-4 + 8e-4 * done / 4 if done < 4 else 1e-6 + (1e-3 - 1e-6) * cosine
        groups_decay = 0.4 + (0.04 - 0.4) * 0.5 * (1 + math.cos(math.pi * done / 12))
        adam.param_groups[0]["weight_decay"] = groups_decay
        loss = loss_by_the_paper(theirs, images_of(step), torch.arange(4) + 4 * step)
        adam.zero_grad()
        loss.backward()
        adam.step()
        momentum = 0.996 + 0.004 * step / 12
        with torch.no_grad():
            for mine, other in zip(teacher.parameters(), encoder.parameters(), strict=True):
                mine.mul_(momentum).add_(other, alpha=1 - momentum)
        expected.append(float(loss.detach()))
    assert losses == pytest.approx(expected, rel=1e-9)
    for name, value in theirs.objective.state_dict().items():
        torch.testing.assert_close(ours.objective.state_dict()[name], value, atol=1e-9, rtol=1e-7)
    stored = json.loads(GOLDEN.read_text())
    if os.environ.get("GOLDEN"):
        stored["ijepa"] = losses
        GOLDEN.write_text(json.dumps(stored, indent=1) + "\n")
    assert losses == pytest.approx(stored["ijepa"], rel=1e-7)


def test_the_mask_token_begins_with_the_published_deviation_and_all_linear_layers_are_plain() -> None:
    config = config_of()
    wide = replace(config, predictor=replace(config.predictor, width=384, heads=2))
    model = JEPA(wide)
    assert float(model.predictor.mask_tokens[0].std()) == pytest.approx(0.02, rel=0.15)
    assert float(model.predictor.predictor_blocks[1].attn.proj.weight.std()) == pytest.approx(0.02, rel=0.03)


def test_the_flops_of_a_step_are_those_of_its_passes() -> None:
    """D 24, P 12, N 64; K and M from the masks: a block over n tokens of width D has 24 n D^2 + 4 n^2 D."""
    config = config_of()
    parts = draw_parts(SMALL, (1, 8, 8), torch.arange(4), 0)
    k, m = parts[0].context.shape[1], parts[0].target.shape[1]

    def block(n: int, d: int) -> int:
        return 24 * n * d * d + 4 * n * n * d

    patches = 2 * 24 * 3 * 8 * 8
    teacher = 2 * block(64, 24) + 64 * patches
    encoder = 3 * 2 * block(k, 24) + 2 * k * patches
    predictor = 4 * 3 * (2 * block(k + m, 12) + 2 * 12 * 24 * (k + m))
    assert config.clip_flops(4) == teacher + encoder + predictor


def test_what_does_not_fit_the_objective_is_refused() -> None:
    config = config_of()
    with pytest.raises(ValueError, match=r"masks.image.kind=blocks has one target.*set masks.image.kind=multiblock"):
        replace(config, masks={"image": MaskConfig()})
    with pytest.raises(ValueError, match=r"keep, predict and lengths_of_batch must be null"):
        replace(config, masks={"image": replace(SMALL, lengths_of_batch=4)})
    with pytest.raises(ValueError, match=r"needs predictor.mask_token=clip"):
        replace(config, predictor=replace(config.predictor, mask_token="mask"))
    with pytest.raises(ValueError, match=r"options of a multiblock mask are .*there is no lest"):
        draw_parts(replace(MASK, options={"lest": 4}), (1, 8, 8), torch.arange(2), 0)
    with pytest.raises(ValueError, match=r"on 4x4 patches has a context block of 9 cells, but needs more than .*=10"):
        draw_parts(MASK, (1, 4, 4), torch.arange(2), 0)
    with pytest.raises(ValueError, match=r"needs at least 2x2 patches, got 1x1"):
        draw_parts(MASK, (1, 1, 1), torch.arange(2), 0)
    with pytest.raises(ValueError, match=r"masks.a.kind=blocks has no separate targets; take multiblock"):
        draw_parts(MaskConfig(), (1, 4, 4), torch.arange(2), 0, name="a")
    with pytest.raises(ValueError, match=r"encoder.width must be a multiple of 4 for positions=sincos_2d, got 26"):
        EncoderConfig(size="custom", width=26, depth=1, heads=2, positions="sincos_2d", patch=8, crop=64)
    assert config.follows_device_batch


def test_the_papers_squared_distance_can_be_chosen() -> None:
    config = config_of(options=IjepaOptions("power"))
    squared = replace(config, loss=replace(config.loss, power=2.0))
    model = JEPA(squared).double()
    model.watching = True
    loss = model.training_step(images_of(0), 0)
    assert model.watched is not None
    goal = model.watched.targets
    errors = [
        (one.prediction - goal.gather(1, one.target_index[..., None].expand(-1, -1, 24))).square().mean() / 2
        for one in model.watched.predictions
    ]
    assert float(loss.detach()) == pytest.approx(float(sum(errors) / 4))


OFFICIAL = [  # of a ViT, in the order of the public modules; block 0 stands for all
    "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias",
    *(f"blocks.0.{name}.{kind}" for name in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
      for kind in ("weight", "bias")),
    "norm.weight", "norm.bias",
]  # fmt: skip


@pytest.fixture
def written(tmp_path: Path) -> tuple[JEPA, Path]:
    model = JEPA(config_of())
    torch.nn.init.normal_(model.predictor.mask_tokens[0])
    return model, save_meta(model.context_encoder, model.predictor, tmp_path)


def test_a_file_has_the_public_names_and_shapes_and_comes_back(written: tuple[JEPA, Path]) -> None:
    model, path = written
    assert path.name == "checkpoint.pth.tar"
    content = torch.load(path, weights_only=True)
    encoder = content["target_encoder"]
    assert {name for name in encoder if "blocks.1" not in name} == {f"module.{name}" for name in OFFICIAL}
    assert encoder["module.patch_embed.proj.weight"].shape == (24, 3, 8, 8)
    assert encoder["module.pos_embed"].shape == (1, 64, 24)
    predictor = content["predictor"]
    assert predictor["module.mask_token"].shape == (1, 1, 12)
    assert predictor["module.predictor_pos_embed"].shape == (1, 64, 12)
    assert {name.split(".")[1] for name in predictor} == {
        "mask_token", "predictor_pos_embed", "predictor_embed", "predictor_blocks", "predictor_norm", "predictor_proj",
    }  # fmt: skip
    del content["vjepa"]  # what tells ours apart; an official file has none
    torch.save(content, path)
    with pytest.raises(ValueError, match="no published size"):
        load_meta(path, "target_encoder")
    found = load_pretrained(path, "target_encoder", Hints(heads=2, predictor_heads=2))
    assert replace(found.encoder.config, init="plain", rotary_order="interleaved") == model.config.encoder
    for name, value in model.context_encoder.state_dict().items():
        assert torch.equal(found.encoder.state_dict()[name], value)
    assert found.predictor is not None
    images = images_of(0).float()
    part = draw_parts(SMALL, (1, 8, 8), torch.arange(4), 0)[1]
    torch.testing.assert_close(found.encoder(images), model.context_encoder(images))
    context = model.context_encoder(images, part.context)
    expected = model.predictor(context, part.context, part.target)
    torch.testing.assert_close(found.predictor(context, part.context, part.target), expected)


def test_a_file_that_is_not_whole_is_refused(written: tuple[JEPA, Path]) -> None:
    _, path = written
    content = torch.load(path, weights_only=True)
    lost = {name: value for name, value in content["encoder"].items() if "norm1.bias" not in name}
    torch.save({**content, "encoder": lost}, path)
    with pytest.raises(ValueError, match="missing blocks.0.norm1.bias"):
        load_meta(path, "encoder")
    turned = {**content["encoder"], "module.pos_embed": content["encoder"]["module.pos_embed"].flip(2)}
    torch.save({**content, "encoder": turned}, path)
    with pytest.raises(ValueError, match="differs by .* from the sin-cos table"):
        load_meta(path, "encoder")


def test_the_optimiser_of_a_run_is_numbered_like_the_public_one_and_read_back(written: tuple[JEPA, Path]) -> None:
    """The public groups: weights of the encoder, weights of the predictor, biases of each; frozen tables count."""
    model, path = written
    names = {part: dict(getattr(model, module).named_parameters()) for part, module in PARTS.items()}
    moments = {
        (part, name): {"step": torch.tensor(3.0), "exp_avg": value + 1.0, "exp_avg_sq": value.square()}
        for part, values in names.items()
        for name, value in ((n, v.detach()) for n, v in values.items())
    }
    context = {name: value + 2.0 for name, value in model.context_encoder.state_dict().items()}
    content = torch.load(path, weights_only=True)
    whole = add_training(content, Training(context, moments, model.config.optim, 1300, 2048))
    assert whole["epoch"] == 2
    groups, state = whole["opt"]["param_groups"], whole["opt"]["state"]
    blocks = 4 * 2  # weights of two blocks: qkv, proj, fc1, fc2
    assert [len(group["params"]) for group in groups] == [2 + blocks, 4 + blocks, 3 + 2 * 8, 4 + 2 * 8]
    assert 0 not in state, "the encoder's table has no state"
    assert torch.equal(state[1]["exp_avg"], names["encoder"]["patch_embed.proj.weight"].squeeze(2) + 1.0)
    assert torch.equal(state[2 + blocks]["exp_avg"], names["predictor"]["mask_tokens.0"] + 1.0)
    assert 3 + blocks not in state, "nor has the predictor's"
    torch.save(whole, path)
    weights, found = read_training(path)
    assert {name: tuple(value.shape) for name, value in weights["encoder"].items()} == {
        name: tuple(value.shape) for name, value in context.items()
    }
    assert all(torch.equal(value, context[name]) for name, value in weights["encoder"].items())
    assert found.keys() == moments.keys()
    for member, expected in moments.items():
        for key, value in expected.items():
            assert torch.equal(found[member][key], value), (member, key)


PARTS = {"encoder": "context_encoder", "predictor": "predictor"}


def test_the_encoder_is_that_of_transformers() -> None:
    """The same random weights in transformers' IJepaModel, which also takes single images."""
    transformers = pytest.importorskip("transformers")
    encoder = Encoder(config_of().encoder).eval()
    for value in encoder.parameters():
        torch.nn.init.normal_(value, std=0.2)
    theirs = transformers.IJepaModel(
        transformers.IJepaConfig(
            hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=96, image_size=64,
            patch_size=8, layer_norm_eps=1e-6,
        )
    ).eval()  # fmt: skip
    mine = encoder.state_dict()
    weights = {
        "embeddings.position_embeddings": encoder.position_table[None],
        "embeddings.patch_embeddings.projection.weight": mine["patch_embed.proj.weight"].squeeze(2),
        "embeddings.patch_embeddings.projection.bias": mine["patch_embed.proj.bias"],
        "layernorm.weight": mine["norm.weight"],
        "layernorm.bias": mine["norm.bias"],
    }
    others = {"norm1": "layernorm_before", "norm2": "layernorm_after", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
    for block in range(2):
        for kind in ("weight", "bias"):
            qkv = mine[f"blocks.{block}.attn.qkv.{kind}"].chunk(3)
            for name, value in zip("qkv", qkv, strict=True):
                weights[f"layers.{block}.attention.{name}_proj.{kind}"] = value
            weights[f"layers.{block}.attention.o_proj.{kind}"] = mine[f"blocks.{block}.attn.proj.{kind}"]
            for own, other in others.items():
                weights[f"layers.{block}.{other}.{kind}"] = mine[f"blocks.{block}.{own}.{kind}"]
    theirs.load_state_dict(weights)
    images = images_of(3).float()[:, :, 0]
    with torch.no_grad():
        torch.testing.assert_close(encoder(images), theirs(images).last_hidden_state, atol=2e-5, rtol=1e-4)
