"""V-JEPA 2.1 as specified, on random weights. The forward passes in this file are written from the equations."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from vjepa.batch import ClipGroup
from vjepa.encoder import EncoderConfig, build_encoder, levels_of
from vjepa.encoder21 import ModalityEncoder, join_levels
from vjepa.jepa import JEPA, JepaConfig
from vjepa.masks import MaskConfig, Masks, draw_all
from vjepa.objectives.dense import DenseOptions
from vjepa.objectives.objective import StepContext
from vjepa.optim import OptimConfig
from vjepa.patches import gather_tokens
from vjepa.predictor import PredictorConfig, build_predictor
from vjepa.predictor21 import ModalityPredictor

Weights = dict[str, Tensor]
HEADS = 2
CONFIG = EncoderConfig(
    kind="vjepa21", size="custom", width=24, depth=8, heads=HEADS, patch=16, frames=4, crop=64, positions="rotary"
)
LEVELS = (1, 3, 5, 7)


@pytest.fixture
def config() -> JepaConfig:
    """Two kinds of masks for clips, one for images; the visible tokens weighted from the first step."""
    return JepaConfig(
        objective="dense",
        encoder=CONFIG,
        predictor=PredictorConfig(width=12, depth=2, heads=HEADS, mask_tokens=8),
        masks={"few": MaskConfig(num_blocks=2, spatial_scale=(0.3, 0.3)), "ahead": MaskConfig(kind="future")},
        image_masks={"image": MaskConfig(num_blocks=3, spatial_scale=(0.2, 0.2))},
        options=DenseOptions(ramp=(0.0, 0.0)),
        optim=OptimConfig(lr=1e-3, start_lr=1e-3, warmup_steps=0, clip=0.0),
        steps=20,
    )


def shake(module: torch.nn.Module, seed: int = 0) -> Any:
    """Random weights everywhere, so that no embedding, bias or token is 0 and no norm is the identity."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return module


def clips(frames: int = 4, side: int = 64, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, frames, side, side, generator=torch.Generator().manual_seed(frames * side))


def linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def norm(weights: Weights, name: str, x: Tensor) -> Tensor:
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
    return (x - mean) / (variance + 1e-6).sqrt() * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def turn(x: Tensor, positions: Tensor) -> Tensor:
    """Rotate x [B, heads, K, R] by positions [B, K, 3] (time, height, width): pair i of an axis by position * f_i."""
    part = 2 * ((x.shape[-1] // 3) // 2)
    out = x.clone()
    for axis in range(3):
        for pair in range(part // 2):
            angle = (positions[..., axis] * 10000.0 ** (-pair / (part // 2)))[:, None]
            first, second = axis * part + 2 * pair, axis * part + 2 * pair + 1
            out[..., first] = x[..., first] * angle.cos() - x[..., second] * angle.sin()
            out[..., second] = x[..., second] * angle.cos() + x[..., first] * angle.sin()
    return out


def place(index: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """Positions [B, K, 3] of token indices: cells, in height and width scaled by 15 / (side - 1)."""
    _, h, w = grid
    return cells(index, grid) * torch.tensor([1, 15 / max(h - 1, 1), 15 / max(w - 1, 1)], dtype=torch.float64)


def cells(index: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """Time, row and column [B, K, 3] of token indices."""
    _, h, w = grid
    return torch.stack([index // (h * w), index // w % h, index % w], -1).double()


def transform(weights: Weights, stem: str, x: Tensor, positions: Tensor) -> Tensor:
    query, key, value = (
        part.unflatten(-1, (HEADS, -1)).transpose(1, 2)
        for part in linear(weights, f"{stem}.attn.qkv", norm(weights, f"{stem}.norm1", x)).chunk(3, -1)
    )
    query, key = turn(query, positions), turn(key, positions)
    attention = (query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])).softmax(-1)
    x = x + linear(weights, f"{stem}.attn.proj", (attention @ value).transpose(1, 2).flatten(2))
    hidden = functional.gelu(linear(weights, f"{stem}.mlp.fc1", norm(weights, f"{stem}.norm2", x)))
    return x + linear(weights, f"{stem}.mlp.fc2", hidden)


def encode(weights: Weights, video: Tensor, index: Tensor | None = None) -> list[Tensor]:
    """The four levels of a clip or image, from the public names of the weights."""
    image = video.shape[2] == 1
    name, modality = ("patch_embed_img", "img_mod_embed") if image else ("patch_embed", "video_mod_embed")
    kernel = weights[f"{name}.proj.weight"]
    volume = functional.conv3d(video, kernel, weights[f"{name}.proj.bias"], stride=kernel.shape[2:])
    grid = (volume.shape[2], volume.shape[3], volume.shape[4])
    x = volume.flatten(2).transpose(1, 2) + weights[modality]
    index = torch.arange(x.shape[1]).expand(len(x), -1) if index is None else index
    x, found = gather_tokens(x, index), []
    for block in range(8):
        x = transform(weights, f"blocks.{block}", x, place(index, grid))
        if block in LEVELS:
            found.append(norm(weights, f"norms_block.{LEVELS.index(block)}", x))
    return found


def predict(
    weights: Weights, context: Tensor, mask: Masks, grid: tuple[int, int, int], image: bool
) -> tuple[Tensor, Tensor]:
    """Visible and hidden tokens from the joined levels."""
    if "predictor_embed.weight" in weights:
        seen = linear(weights, "predictor_embed", context)
    else:
        seen = linear(weights, "predictor_embed.2", functional.gelu(linear(weights, "predictor_embed.0", context)))
    hidden = weights["mask_tokens.0"].expand(len(seen), mask.target.shape[1], -1)
    x = torch.cat([seen, hidden], 1) + weights["img_mod_embed" if image else "video_mod_embed"]
    for block in range(2):
        x = transform(weights, f"predictor_blocks.{block}", x, place(torch.cat(list(mask), 1), grid))
    x = norm(weights, "predictor_norm", x)
    count = mask.context.shape[1]
    return (
        linear(weights, "predictor_proj_context", x[:, :count]),
        linear(weights, "predictor_proj", x[:, count:]),
    )


def level_targets(levels: list[Tensor]) -> Tensor:
    """Each level normalised without scale and shift, eps 1e-5."""
    return torch.cat([
        (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt() for x in levels
    ], -1)  # fmt: skip


def dense_loss(
    student: Weights, teacher: Weights, predictor: Weights, video: Tensor, masks: list[Masks], weight: float, near: bool
) -> Tensor:
    """mean |z - h| over hidden + weight * mean |z_c - h_c| / sqrt(d) over visible tokens, mean over masks."""
    image = video.shape[2] == 1
    grid = (1 if image else video.shape[2] // 2, video.shape[3] // 16, video.shape[4] // 16)
    targets, total = level_targets(encode(teacher, video)), torch.zeros((), dtype=video.dtype)
    for mask in masks:
        seen, hidden = predict(predictor, torch.cat(encode(student, video, mask.context), -1), mask, grid, image)
        total = total + (hidden - gather_tokens(targets, mask.target)).abs().mean()
        error = (seen - gather_tokens(targets, mask.context)).abs()
        if near:
            seen_at, hidden_at = (cells(half, grid) for half in mask)
            distance = (seen_at[:, :, None] - hidden_at[:, None]).square().sum(-1).sqrt().amin(-1)
            error = error / distance.sqrt()[..., None]
        total = total + weight * error.mean()
    return total / len(masks)


def test_published_sizes_have_their_shapes_and_levels() -> None:
    shapes = {"base": (768, 12, 12, 3072), "large": (1024, 24, 16, 4096), "giant": (1408, 40, 22, 6144)}
    shapes["gigantic"] = (1664, 48, 26, 8192)
    levels = {"base": (2, 5, 8, 11), "large": (5, 11, 17, 23), "giant": (9, 19, 29, 39), "gigantic": (11, 23, 37, 47)}
    for size, expected in shapes.items():
        sized = EncoderConfig(kind="vjepa21", size=size, positions="rotary")  # type: ignore[arg-type]
        width, depth, heads, ratio = sized.shape
        assert (width, depth, heads, round(width * ratio)) == expected
        assert levels_of(sized, 4) == levels[size]
        assert levels_of(sized, 1) == (depth - 1,)


@pytest.mark.parametrize("size", ["base", "large", "giant", "gigantic"])
def test_published_sizes_have_the_published_names_and_shapes(size: Any) -> None:
    with torch.device("meta"):
        encoder = build_encoder(EncoderConfig(kind="vjepa21", size=size, positions="rotary"))
    width, depth, _, _ = encoder.config.shape
    found = {name: tuple(value.shape) for name, value in encoder.state_dict().items()}
    for name, shape in {
        "patch_embed.proj.weight": (width, 3, 2, 16, 16), "patch_embed_img.proj.weight": (width, 3, 1, 16, 16),
        "patch_embed.proj.bias": (width,), "patch_embed_img.proj.bias": (width,),
        "video_mod_embed": (1, 1, width), "img_mod_embed": (1, 1, width),
    }.items():  # fmt: skip
        assert found.pop(name) == shape, name
    for level in range(4):
        assert found.pop(f"norms_block.{level}.weight") == found.pop(f"norms_block.{level}.bias") == (width,)
    assert len(found) == 12 * depth
    assert all(name.startswith("blocks.") for name in found)


@pytest.mark.parametrize(("levels", "target"), [(4, 0), (1, 1664)])
def test_the_predictor_has_the_published_names_and_shapes(levels: int, target: int) -> None:
    encoder = EncoderConfig(kind="vjepa21", size="base" if levels == 1 else "gigantic", positions="rotary")
    depth = 12 if levels == 1 else 24
    with torch.device("meta"):
        predictor = build_predictor(PredictorConfig(384, depth, 12, 4.0, 8), encoder, levels, target)
    found = {name: tuple(value.shape) for name, value in predictor.state_dict().items()}
    width, out = encoder.shape.width, target or 4 * 1664
    embed = (
        {"predictor_embed.weight": (384, width), "predictor_embed.bias": (384,)} if levels == 1
        else {"predictor_embed.0.weight": (width, 4 * width), "predictor_embed.0.bias": (width,),
              "predictor_embed.2.weight": (384, width), "predictor_embed.2.bias": (384,)}
    )  # fmt: skip
    for name, shape in {
        **embed, **{f"mask_tokens.{number}": (1, 1, 384) for number in range(8)},
        "predictor_proj.weight": (out, 384), "predictor_proj.bias": (out,),
        "predictor_proj_context.weight": (out, 384), "predictor_proj_context.bias": (out,),
        "predictor_norm.weight": (384,), "predictor_norm.bias": (384,),
        "video_mod_embed": (1, 1, 384), "img_mod_embed": (1, 1, 384),
    }.items():  # fmt: skip
        assert found.pop(name) == shape, name
    assert len(found) == 12 * depth
    assert all(name.startswith("predictor_blocks.") for name in found)


@pytest.mark.parametrize(("frames", "side"), [(4, 64), (1, 64), (1, 96), (4, 128)])
def test_features_equal_the_equations_for_clips_and_images_of_any_size(frames: int, side: int) -> None:
    encoder = shake(build_encoder(CONFIG)).double()
    video = clips(frames, side).double()
    weights = {name: value.detach() for name, value in encoder.state_dict().items()}
    expected = encode(weights, video)
    torch.testing.assert_close(encoder(video), expected[-1])
    torch.testing.assert_close(join_levels(encoder, video), torch.cat(expected, -1))
    torch.testing.assert_close(encoder.layers(video, LEVELS)[1], expected[1])
    tokens = expected[0].shape[1]
    assert tokens == max(1, frames // 2) * (side // 16) ** 2
    index = torch.stack([torch.randperm(tokens)[: tokens // 2].sort().values for _ in range(2)])
    torch.testing.assert_close(encoder(video, index), encode(weights, video, index)[-1])


def test_positions_are_the_cells_at_256_pixels_and_scaled_elsewhere() -> None:
    from vjepa.positions import rotary_rotation
    from vjepa.predictor21 import position_span

    assert (position_span(16), position_span(14)) == (15, 17)
    plain, scaled = (rotary_rotation(64, (2, 16, 16), "interleaved", None, span)[1] for span in (None, 15))
    assert torch.equal(plain, scaled)
    angle = torch.asin(rotary_rotation(64, (2, 24, 24), "interleaved", None, 15)[1][1 * 24 + 1])  # cell (0, 1, 1)
    torch.testing.assert_close(angle[20], torch.tensor(15 / 23))
    late = torch.asin(rotary_rotation(64, (2, 24, 24), "interleaved", None, 15)[1][24 * 24])
    torch.testing.assert_close(late[0], torch.tensor(1.0))  # time is not scaled


def test_modality_embeddings_start_near_zero() -> None:
    encoder = build_encoder(CONFIG)
    for embedding in (encoder.video_mod_embed, encoder.img_mod_embed):
        assert 1e-7 < float(embedding.detach().std()) < 3e-6


@pytest.mark.parametrize("frames", [4, 1])
@pytest.mark.parametrize("options", [
    DenseOptions(ramp=(0.0, 0.0)), DenseOptions(ramp=(0.0, 0.0), distance=False), DenseOptions(ramp=(0.5, 0.5)),
])  # fmt: skip
def test_loss_and_gradients_of_a_step_equal_the_equations(
    config: JepaConfig, frames: int, options: DenseOptions
) -> None:
    model = JEPA(replace(config, options=options)).double()
    objective = model.objective
    for seed, part in enumerate((objective.context_encoder, objective.predictor, objective.target_encoder.encoder)):
        shake(part, seed)
    video, samples = clips(frames).double(), torch.arange(2)
    grid = (max(1, frames // 2), 4, 4)
    chosen = config.masks if frames > 1 else config.image_masks
    masks = draw_all(chosen, grid, samples, config.seed)
    output = objective.step(ClipGroup(video), StepContext(samples, 2, 0.0))
    output.loss.backward()
    parts = [
        {name: value.detach().clone().requires_grad_() for name, value in part.state_dict().items()}
        for part in (objective.context_encoder, objective.predictor)
    ]
    teacher = {name: value.detach() for name, value in objective.target_encoder.encoder.state_dict().items()}
    weight = 0.5 if options.ramp[0] == 0 else 0.0
    loss = dense_loss(parts[0], teacher, parts[1], video, masks, weight, options.distance)
    loss.backward()
    # Losses are computed in fp32, whatever the weights are.
    torch.testing.assert_close(output.loss.double(), loss, rtol=1e-6, atol=1e-6)
    for module, weights in zip((objective.context_encoder, objective.predictor), parts, strict=True):
        for name, parameter in module.named_parameters():
            expected = weights[name].grad
            if expected is None or parameter.grad is None:
                assert expected is None or not expected.any(), name
                assert parameter.grad is None or not parameter.grad.any(), name
            else:
                torch.testing.assert_close(parameter.grad, expected, rtol=1e-5, atol=1e-7, msg=name)


def test_only_the_first_mask_token_is_trained(config: JepaConfig) -> None:
    predictor = JEPA(config).predictor
    assert isinstance(predictor, ModalityPredictor)
    assert [token.requires_grad for token in predictor.mask_tokens] == [True] + 7 * [False]


def test_the_weight_of_visible_tokens_grows_as_published() -> None:
    primary = DenseOptions(ramp=(15 / 135, 30 / 135))
    assert [primary.visible_weight(step / 135_000) for step in (0, 14_999, 30_000, 134_999)] == [0, 0, 0.5, 0.5]
    assert primary.visible_weight(22_500 / 135_000) == pytest.approx(0.25)
    assert DenseOptions(ramp=(0.0, 0.0)).visible_weight(0.0) == 0.5  # the cooldown: constant from the first step


def test_levels_without_a_norm_are_refused(config: JepaConfig) -> None:
    encoder = build_encoder(CONFIG)
    with pytest.raises(ValueError, match=r"must be among its levels \[1, 3, 5, 7\].* got \[2\]"):
        encoder.layers(clips(), (2,))
    with pytest.raises(ValueError, match=r"ask for 1 \(the last\) or 4 levels, got 2"):
        replace(config, options=DenseOptions(levels=2))
    with pytest.raises(ValueError, match="hierarchical features need an encoder with a norm for each level"):
        join_levels(build_encoder(replace(CONFIG, kind="vit")), clips())


@pytest.mark.parametrize("change", [{"positions": "sincos"}, {"rotary_order": "tiled"}])
def test_other_positions_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="needs encoder.positions=rotary and encoder.rotary_order=interleaved"):
        ModalityEncoder(replace(CONFIG, **change))


def test_a_step_on_clips_leaves_the_parts_for_images_as_they_are(config: JepaConfig) -> None:
    model = JEPA(config)
    model.training_step({"clips": torch.randint(0, 256, (2, 4, 64, 64, 3), dtype=torch.uint8)}, 0).backward()
    unused = {name for name, value in model.context_encoder.named_parameters() if value.grad is None}
    assert unused == {"img_mod_embed", "patch_embed_img.proj.weight", "patch_embed_img.proj.bias"}
    assert config.leaves_unused  # so DDP looks for them
