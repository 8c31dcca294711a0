"""LeVJEPA against equations written here: causal attention, class token, dropped tokens, SIGReg, a step, FLOPs."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from batches import losses_by_hand
from torch import Tensor, nn
from torch.nn import functional

from vjepa.encoder import Encoder, EncoderConfig, build_encoder, encode_selections
from vjepa.encoder_causal import CausalEncoder, who_sees_whom
from vjepa.formats.native import load_encoder, save_encoder
from vjepa.jepa import JEPA, JepaConfig
from vjepa.objectives.levjepa import LevjepaOptions, Projector, keep_tokens
from vjepa.optim import OptimConfig
from vjepa.positions import rotary_rotation, rotate
from vjepa.regularise import RegulariserConfig, draw_directions
from vjepa.targets import TeacherConfig

ENCODER = EncoderConfig(
    kind="causal", size="custom", width=24, depth=2, heads=2, patch=8, tubelet=1, frames=4, crop=16, positions="rotary",
    rotary_order="tiled",
)  # fmt: skip
CONFIG = JepaConfig(
    objective="levjepa",
    encoder=ENCODER,
    options=LevjepaOptions(keep=0.5, hidden=20, projection=6, count_local=3, local_crop=8),
    regulariser=RegulariserConfig(sigreg=0.02, slices=32, knots=17),
    teacher=TeacherConfig(momentum=0.9, final_momentum=0.9),
    optim=OptimConfig(lr=1e-3, start_lr=1e-4, final_lr=1e-3, lr_shape="constant", warmup_steps=2, clip=0.0),
    steps=20,
)


def encoder_of(config: EncoderConfig = ENCODER) -> CausalEncoder:
    torch.manual_seed(0)
    encoder = build_encoder(config)
    for value in encoder.parameters():
        nn.init.normal_(value, std=0.3)
    return encoder.eval()


def batch_of(step: int, clips: int = 5) -> dict[str, Any]:
    """Clips of 4 frames at 16 pixels, and three local views of 8 pixels of each."""
    generator = torch.Generator().manual_seed(step)
    whole = torch.randint(0, 256, (clips, 4, 16, 16, 3), dtype=torch.uint8, generator=generator)
    local = torch.randint(0, 256, (clips, 3, 4, 8, 8, 3), dtype=torch.uint8, generator=generator)
    return {"clips": whole, "local": local}


def test_later_frames_cannot_change_earlier_tokens_but_the_class_token_sees_all() -> None:
    encoder, video = encoder_of(), torch.randn(2, 3, 4, 16, 16)
    changed = video.clone()
    changed[:, :, 2] += 1
    before, after = encoder(video), encoder(changed)
    assert before.shape == (2, 16, 24)
    assert torch.equal(before[:, :8], after[:, :8]), "frames 0 and 1"
    for frame in (2, 3):
        assert not torch.allclose(before[:, 4 * frame : 4 * frame + 4], after[:, 4 * frame : 4 * frame + 4])
    earlier = video.clone()
    earlier[:, :, 0] += 1
    assert not torch.allclose(encoder(earlier)[:, 12:], before[:, 12:]), "earlier frames are seen"
    assert not torch.allclose(encoder.read(video), encoder.read(changed))


def test_a_prefix_of_the_clip_has_the_same_tokens() -> None:
    encoder, video = encoder_of(), torch.randn(1, 3, 4, 16, 16)
    torch.testing.assert_close(encoder(video[:, :, :2]), encoder(video)[:, :8])


def test_tokens_and_class_token_are_those_of_a_forward_from_the_equations() -> None:
    encoder, video = encoder_of(), torch.randn(1, 3, 4, 16, 16)
    index = torch.tensor([[1, 4, 6, 9, 15]])
    patches = video.unflatten(4, (2, 8)).unflatten(3, (2, 8)).permute(0, 2, 3, 5, 1, 4, 6).reshape(1, 16, -1)
    embedding = encoder.patch_embed.proj
    x = functional.linear(patches[:, index[0]], embedding.weight.flatten(1), embedding.bias)
    x = torch.cat([encoder.cls_token, x], 1)
    cosine, sine = rotary_rotation(12, (4, 2, 2), "tiled")
    frames = (index[0] // 4).tolist()
    for block in encoder.blocks:
        q, k, v = block.attn.qkv(block.norm1(x)).view(1, 6, 3, 2, 12).permute(2, 0, 3, 1, 4)
        turn = cosine[index[0]], sine[index[0]]
        q = torch.cat([q[:, :, :1], rotate(q[:, :, 1:], turn)], 2)
        k = torch.cat([k[:, :, :1], rotate(k[:, :, 1:], turn)], 2)
        rows = []
        for row in range(6):
            seen = list(range(6)) if row == 0 else [1 + n for n in range(5) if frames[n] <= frames[row - 1]]
            weights = (q[:, :, row : row + 1] @ k[:, :, seen].transpose(2, 3) / math.sqrt(12)).softmax(-1)
            rows.append(weights @ v[:, :, seen])
        x = x + block.attn.proj(torch.cat(rows, 2).transpose(1, 2).flatten(2))
        x = x + block.mlp(block.norm2(x))
    x = encoder.norm(x)
    torch.testing.assert_close(encoder(video, index), x[:, 1:], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(encoder.read(video, index), x[:, 0], atol=1e-4, rtol=1e-4)


def test_who_sees_whom() -> None:
    seen = who_sees_whom((2, 1, 2), None, torch.device("cpu"))[0, 0].int().tolist()
    assert seen == [[1, 1, 1, 1, 1], [0, 1, 1, 0, 0], [0, 1, 1, 0, 0], [0, 1, 1, 1, 1], [0, 1, 1, 1, 1]]
    chosen = who_sees_whom((2, 1, 2), torch.tensor([[3, 0]]), torch.device("cpu"))[0, 0].int().tolist()
    assert chosen == [[1, 1, 1], [0, 1, 1], [0, 0, 1]]


def test_several_selections_are_encoded_apart_and_activations_may_be_recomputed() -> None:
    encoder, video = encoder_of(), torch.randn(2, 3, 4, 16, 16)
    first, second = torch.tensor([[0, 5, 7]] * 2), torch.tensor([[2, 9]] * 2)
    one, two = encode_selections(encoder, video, [first, second])
    torch.testing.assert_close(one, encoder(video, first))
    torch.testing.assert_close(two, encoder(video, second))
    again = encoder_of(replace(ENCODER, checkpoint_activations=True)).train()
    again.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(again.read(video, first), encoder.read(video, first))
    with pytest.raises(ValueError, match=r"layers must lie in \[-2, 1\]"):
        encoder.layers(video, [4])


def test_an_exported_encoder_comes_back_with_its_class_token(tmp_path: Any) -> None:
    encoder = encoder_of()
    save_encoder(encoder, tmp_path / "out")
    found = load_encoder(tmp_path / "out")
    video = torch.randn(1, 3, 4, 16, 16)
    assert isinstance(found, CausalEncoder)
    assert torch.equal(found.read(video), encoder.read(video))


def test_loss_of_a_step_is_that_of_the_equations() -> None:
    """z of all views through one projector, its batch norm over all of them; SIGReg of each view, not centred."""
    model = JEPA(CONFIG)
    seen: list[Tensor] = []
    model.objective.projector.register_forward_hook(lambda module, rows, out: seen.append(out))
    loss = model.training_step(batch_of(0), 0)
    z = seen[0].detach().view(4, 5, 6).double()
    expected = (z - z[0]).square().mean()
    directions = draw_directions(6, 32, 5, z.device).double()
    total = 0.0
    for view in z:
        for direction in directions.T:
            value, step = 0.0, 3 / 16
            for knot in range(17):
                t = knot * step
                angle = t * (view @ direction)
                error = (angle.cos().mean() - math.exp(-t * t / 2)) ** 2 + angle.sin().mean() ** 2
                weight = 2 * step if 0 < knot < 16 else step
                value += weight * math.exp(-t * t / 2) * float(error)
            total += 5 * value
    assert float(loss.detach()) == pytest.approx(float(expected) + 0.02 * total / 4 / 32, rel=1e-4)


def test_gradients_reach_everything_through_both_sides_and_there_is_no_teacher_in_the_loss() -> None:
    model = JEPA(CONFIG)
    model.training_step(batch_of(0), 0).backward()
    trained = {id(p) for module in model.trained_modules().values() for p in module.parameters()}
    assert trained
    for name, value in model.named_parameters():
        assert (value.grad is not None) == (id(value) in trained), name
    before = model.training_step(batch_of(1), 0)
    for value in model.target_encoder.parameters():
        nn.init.normal_(value)
    model.position -= 5
    assert torch.equal(model.training_step(batch_of(1), 0), before)
    assert model.trained_encoder is model.target_encoder.encoder, "the average is what is evaluated and exported"


def test_the_tokens_of_a_view_depend_on_seed_and_stream_position_alone() -> None:
    model = JEPA(CONFIG).eval()  # batch norm by its running mean: a row no longer depends on the others
    seen: list[Tensor] = []
    model.objective.projector.register_forward_hook(lambda module, rows, out: seen.append(out))
    whole, position = batch_of(0), 5
    model.training_step({**whole, "position": position}, 0)
    half = {name: value[2:] for name, value in whole.items()}
    model.training_step({**half, "position": position}, 0)
    torch.testing.assert_close(seen[0].view(4, 5, 6)[:, 2:], seen[1].view(4, 3, 6))
    model.training_step({**whole, "position": 2 * position}, 0)
    assert not torch.allclose(seen[0], seen[2])


def test_a_twentieth_of_the_tokens_is_kept_as_published() -> None:
    assert keep_tokens(0.05, 16 * 14 * 14) == 157
    assert keep_tokens(0.05, 16 * 6 * 6) == 29
    assert keep_tokens(0.001, 100) == 1


def test_training_lowers_the_distance_of_views_without_collapse() -> None:
    model = JEPA(CONFIG)
    losses = losses_by_hand(model, (batch_of(0) for _ in range(15)))
    assert losses[-1] < 0.8 * losses[0]
    assert all(math.isfinite(loss) for loss in losses)


def test_projector_and_flops() -> None:
    layers = list(Projector(24, 20, 6))
    assert [type(layer) for layer in layers] == [nn.Linear, nn.BatchNorm1d, nn.GELU, nn.Linear]

    def block(n: int) -> int:
        return 24 * n * 24 * 24 + 4 * n * n * 24

    patches, projector = 2 * 24 * 3 * 8 * 8, 2 * 20 * (24 + 6)
    whole = 3 * 2 * block(9) + 2 * 8 * patches  # 8 of 16 tokens and the class token
    local = 3 * 2 * block(3) + 2 * 2 * patches  # 2 of 4
    assert CONFIG.clip_flops(5) == pytest.approx(whole + 3 * local + 3 * 4 * projector)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"reads the class token, which encoder.kind=vit has not"):
        replace(CONFIG, encoder=replace(ENCODER, kind="vit"))
    with pytest.raises(ValueError, match=r"regulariser.sigreg must be above 0, and the other terms off"):
        replace(CONFIG, regulariser=RegulariserConfig(sigreg=0.1, variance=0.1))
    model = JEPA(CONFIG)
    with pytest.raises(ValueError, match=r"needs local views, .* set data.local"):
        model.training_step({"clips": batch_of(0)["clips"]}, 0)
    whole = batch_of(0)
    with pytest.raises(ValueError, match=r"the batch has 2 views of 8 pixels, the objective expects 3 of 8"):
        model.training_step({**whole, "local": whole["local"][:, :2]}, 0)
    assert CONFIG.follows_device_batch
    assert isinstance(build_encoder(replace(ENCODER, kind="vit")), Encoder)
