"""One training step against a plain reference written from the paper's equations."""

import math
from dataclasses import replace

import pytest
import torch
from batches import make_batch
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn

from vjepa.jepa import JEPA, JepaConfig
from vjepa.masks import draw_masks
from vjepa.optim import OptimConfig, Schedule, lr_schedule, make_optimizer, momentum_schedule, weight_decay_schedule
from vjepa.regularise import RegulariserConfig
from vjepa.targets import TargetEncoder, TeacherConfig


def reference_loss(model: JEPA, clips: Tensor, positions: Tensor) -> Tensor:
    """V-JEPA 1, equation 1, over both kinds of masks, clip by clip and token by token, with plain loops."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    video = ((clips / 255 - mean) / std).permute(0, 4, 1, 2, 3)
    with torch.no_grad():
        target = model.target_encoder.encoder(video)
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    total = torch.zeros(())
    for kind, config in enumerate(model.config.masks.values()):
        error, count = torch.zeros(()), 0
        masks = draw_masks(config, model.config.encoder.grid, positions, model.config.seed, kind)
        for clip in range(len(clips)):
            seen, hidden = masks.context[clip : clip + 1], masks.target[clip : clip + 1]
            context = model.context_encoder(video[clip : clip + 1], seen)
            prediction = model.predictor(context, seen, hidden, kind)[0]
            for row, token in enumerate(hidden[0].tolist()):
                error = error + (prediction[row] - target[clip, token]).abs().sum()
                count += prediction.shape[1]
        total = total + error / count
    return total / len(model.config.masks)


def test_loss_and_gradients_equal_the_reference(tiny: JepaConfig) -> None:
    model = JEPA(tiny)
    batch = make_batch(0)
    expected = reference_loss(model, batch.clips, torch.arange(4))
    wanted = torch.autograd.grad(expected, [*model.context_encoder.parameters(), *model.predictor.parameters()])
    loss = model.training_step(batch, 0)
    loss.backward()
    torch.testing.assert_close(loss, expected)
    found = [parameter.grad for parameter in [*model.context_encoder.parameters(), *model.predictor.parameters()]]
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-4)


def test_no_gradient_reaches_the_target_encoder(tiny: JepaConfig) -> None:
    model = JEPA(tiny)
    model.training_step(make_batch(0), 0).backward()
    assert all(parameter.grad is None for parameter in model.target_encoder.parameters())
    assert all(parameter.grad is not None for parameter in model.context_encoder.parameters())


def test_mask_tokens_start_at_zero_one_for_each_kind(tiny: JepaConfig) -> None:
    tokens = JEPA(tiny).predictor.mask_tokens
    assert len(tokens) == 2
    assert all((token == 0).all() for token in tokens)
    with pytest.raises(ValueError, match=r"predictor.mask_tokens must be null or at least the number of masks"):
        JEPA(replace(tiny, predictor=replace(tiny.predictor, mask_tokens=1)))


def test_target_encoder_is_the_moving_average(tiny: JepaConfig) -> None:
    model = JEPA(tiny)
    teacher = TargetEncoder(model.context_encoder)
    before = [parameter.clone() for parameter in teacher.parameters()]
    with torch.no_grad():
        for parameter in model.context_encoder.parameters():
            parameter.add_(1.0)
    teacher.update(model.context_encoder, momentum=0.9)
    for old, new, live in zip(before, teacher.parameters(), model.context_encoder.parameters(), strict=True):
        torch.testing.assert_close(new, 0.9 * old + 0.1 * live)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_regulariser_is_off_by_default_and_reaches_the_encoder_only(tiny: JepaConfig) -> None:
    plain = JEPA(tiny).training_step(make_batch(0), 0)
    off, on = RegulariserConfig(), RegulariserConfig(variance=1.0, covariance=1.0)
    torch.testing.assert_close(JEPA(replace(tiny, regulariser=off)).training_step(make_batch(0), 0), plain)
    gradients = {}
    for name, settings in (("off", off), ("on", on)):
        model = JEPA(replace(tiny, regulariser=settings))
        loss = model.training_step(make_batch(0), 0)
        loss.backward()
        assert (float(loss) > float(plain) + 0.01) == (name == "on")
        gradients[name] = model
    for module, same in (("context_encoder", False), ("predictor", True)):
        pairs = zip(*(getattr(gradients[name], module).parameters() for name in ("off", "on")), strict=True)
        equal = [torch.allclose(one.grad, other.grad, rtol=1e-4, atol=1e-7) for one, other in pairs]
        assert all(equal) if same else not any(equal[:1]), module


def test_schedules_follow_the_published_numbers() -> None:
    lr = lr_schedule(OptimConfig(), steps=90_000)
    assert lr(0) == pytest.approx(2e-4)
    assert lr(6000) == pytest.approx((2e-4 + 6.25e-4) / 2)
    assert lr(12_000) == pytest.approx(6.25e-4)
    progress = (90_000 - 12_000) / (112_500 - 12_000)  # stretched by 1.25, cut at 90k
    assert lr(90_000) == pytest.approx(1e-6 + (6.25e-4 - 1e-6) * (1 + math.cos(math.pi * progress)) / 2)
    decay = weight_decay_schedule(OptimConfig(), steps=90_000)
    assert decay(0) == pytest.approx(0.04)
    assert decay(112_500) == pytest.approx(0.4)
    momentum = momentum_schedule(0.998, 1.0, 90_000, 1.25)
    assert momentum(0) == pytest.approx(0.998)
    assert momentum(56_250) == pytest.approx(0.999)


def test_constant_and_linear_shapes() -> None:
    constant = Schedule(1e-4, 5e-4, 0.0, warmup=10, steps=100, shape="constant")
    cooldown = Schedule(5e-4, 5e-4, 1e-6, warmup=0, steps=100, shape="linear")
    assert [constant(5), constant(10), constant(99)] == pytest.approx([3e-4, 5e-4, 5e-4])
    assert [cooldown(0), cooldown(50), cooldown(100), cooldown(101)] == pytest.approx([5e-4, 2.505e-4, 1e-6, 1e-6])


def test_shares_of_the_run_set_warmup_and_horizon_whatever_its_length() -> None:
    optim, teacher = OptimConfig(warmup_share=0.1, stretch=1.0), TeacherConfig(horizon=(0.1, 0.5))
    for steps in (100, 10_000):
        assert optim.warmup(steps) == steps // 10
        assert lr_schedule(optim, steps)(steps // 10) == pytest.approx(optim.lr)
        first, last = teacher.momenta(steps)
        assert 1 / (1 - first) == pytest.approx(0.1 * steps)
        assert 1 / (1 - last) == pytest.approx(0.5 * steps)
    assert TeacherConfig(momentum=0.9).momenta(7) == (0.9, 1.0)
    assert teacher.momenta(1) == (0.0, 0.0)  # never below a teacher without memory
    with pytest.raises(ValueError, match=r"teacher.horizon must be null or two fractions"):
        TeacherConfig(horizon=(0.1, 0.0))


def test_rates_follow_the_root_of_the_batch() -> None:
    config = OptimConfig(lr=1e-3, start_lr=1e-4, final_lr=1e-5, reference_batch=64).for_batch(16)
    assert (config.lr, config.start_lr, config.final_lr) == pytest.approx((5e-4, 5e-5, 5e-6))
    assert OptimConfig(lr=1e-3).for_batch(16).lr == 1e-3


def test_biases_and_vectors_do_not_decay(tiny: JepaConfig) -> None:
    model = JEPA(tiny)
    optimizer = make_optimizer(OptimConfig(), model.context_encoder, model.predictor)
    decays = {id(p): group["decays"] for group in optimizer.param_groups for p in group["params"]}
    for module in (model.context_encoder, model.predictor):
        for name, parameter in module.named_parameters():
            assert decays.pop(id(parameter)) == (parameter.ndim > 1 and not name.endswith(".bias")), name
    assert not decays


def test_groups_stand_in_the_order_of_timm_as_checkpoints_store_them(tiny: JepaConfig) -> None:
    model = JEPA(tiny)
    assert model.predictor is not None
    both = nn.ModuleList([model.context_encoder, model.predictor])
    wanted = [group["params"] for group in param_groups_weight_decay(both, 0.1)]
    found = [group["params"] for group in make_optimizer(OptimConfig(), *both).param_groups]
    assert [[id(one) for one in group] for group in found] == [[id(one) for one in group] for group in wanted]
