"""An update that would do harm changes nothing and is counted."""

from dataclasses import replace

import pytest
import torch
from batches import make_batch

from vjepa.guard import SETTLING, Guard
from vjepa.jepa import JEPA, JepaConfig


def test_what_is_not_finite_or_far_above_the_average_is_refused() -> None:
    guard = Guard(spike=5.0)
    one = torch.tensor(1.0)
    assert all(guard.check([one]) == 0 for _ in range(SETTLING))
    assert guard.check([4 * one]) == 0
    assert [float(guard.check([value * one])) for value in (50, float("nan"), float("inf"))] == [1, 1, 1]
    assert (int(guard.skipped), int(guard.skipped_in_a_row)) == (3, 3)
    assert guard.check([one]) == 0
    assert (int(guard.skipped), int(guard.skipped_in_a_row)) == (3, 0)
    assert float(guard.average) == pytest.approx(1.0705, abs=1e-3)  # 4, then 5 times 1.03 for the 50, then 1


def test_a_gradient_that_stays_large_is_accepted_after_some_updates() -> None:
    guard = Guard(spike=20.0)
    for norm in [0.13] * SETTLING:
        guard.check([torch.tensor(norm)])
    verdicts = [float(guard.check([torch.tensor(10.0)])) for _ in range(20)]
    assert verdicts == [1.0] * 8 + [0.0] * 12  # 0.13 * 20 * 1.19 ** 8 is the first limit above 10
    assert int(guard.skipped_in_a_row) == 0


def test_what_is_not_finite_is_refused_for_ever() -> None:
    guard = Guard(spike=20.0)
    for norm in [1.0] * SETTLING + [float("nan"), float("inf")] * 20:
        guard.check([torch.tensor(norm)])
    assert (int(guard.skipped_in_a_row), float(guard.average)) == (40, 1.0)


def test_a_run_that_settles_is_not_judged_by_its_first_gradients() -> None:
    guard = Guard(spike=5.0)
    assert guard.check([torch.tensor(1e-3)]) == 0
    assert guard.check([torch.tensor(10.0)]) == 0


@pytest.mark.parametrize("harm", [float("nan"), float("inf"), 1.0])
def test_a_skipped_update_leaves_weights_and_moments_alone(tiny: JepaConfig, harm: float) -> None:
    model = JEPA(replace(tiny, optim=replace(tiny.optim, clip=0.0)))
    optimizer = model.configure_optimizers()
    for number in range(2):
        model.training_step(make_batch(number), 0).backward()
        if number == 1:
            next(model.context_encoder.parameters()).grad.mul_(harm)
            before = [parameter.clone() for parameter in model.parameters()]
            moments = [state["exp_avg"].clone() for state in optimizer.state.values()]
            count = [float(state["step"]) for state in optimizer.state.values()]
        model.on_before_optimizer_step(optimizer)
        optimizer.step()
        optimizer.zero_grad()
    moved = any(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    assert moved == (harm == 1.0)
    after = [state["exp_avg"] for state in optimizer.state.values()]
    assert all(torch.equal(old, new) for old, new in zip(moments, after, strict=True)) == (harm != 1.0)
    assert [float(state["step"]) - old for state, old in zip(optimizer.state.values(), count, strict=True)] == [
        float(harm == 1.0)
    ] * len(count)
    assert int(model.guard.skipped) == int(harm != 1.0)


def test_the_counts_are_part_of_the_state(tiny: JepaConfig) -> None:
    names = set(JEPA(tiny).state_dict())
    assert {f"guard.{name}" for name in ("average", "accepted", "skipped", "skipped_in_a_row")} <= names
