"""Planners find the minimum of costs that are known, and energies say what they should."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from vjepa.energy import ActionCost, ForbiddenDisc, Future, GoalDistance, SurpriseCost, distance_to_segment
from vjepa.planning import Cost, Plan, PlannerConfig, bound, plan, shift, spread, to_knots

BEST = torch.tensor([[[0.5, -0.3], [0.1, 0.2]], [[-0.4, 0.4], [0.0, -0.6]]])  # two episodes, two knots
SEARCH = PlannerConfig(samples=64, elites=8, iterations=12, floor=0.02, knots=(1, 2))
KINDS = {
    "mppi": SEARCH,
    "cem": replace(SEARCH, kind="cem"),
    "gradient": replace(SEARCH, kind="gradient", samples=4, elites=1, iterations=60, lr=0.1),
    "random": replace(SEARCH, kind="random", samples=400, iterations=20),
}


def quadratic(actions: Tensor) -> Tensor:
    """Squared distance from BEST, whose knots are held for 1 and 2 actions."""
    return (actions - spread(BEST, (1, 2)).unsqueeze(1)).square().sum((-1, -2))


@pytest.mark.parametrize("kind", KINDS)
def test_every_planner_finds_the_minimum_of_a_quadratic(kind: str) -> None:
    found = plan(quadratic, KINDS[kind], (2, 2), seed=0)
    torch.testing.assert_close(found.actions, spread(BEST, (1, 2)), atol=0.3 if kind == "random" else 0.06, rtol=0)
    torch.testing.assert_close(found.cost, quadratic(found.actions.unsqueeze(1))[:, 0])


@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_same_plan_and_another_seed_another(kind: str) -> None:
    few = replace(KINDS[kind], iterations=1)
    one, two, other = (plan(quadratic, few, (2, 2), seed=seed).actions for seed in (3, 3, 4))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("kind", KINDS)
def test_an_episode_is_planned_the_same_alone_and_among_others(kind: str) -> None:
    def second(actions: Tensor) -> Tensor:
        return (actions - spread(BEST, (1, 2))[1:].unsqueeze(1)).square().sum((-1, -2))

    few = replace(KINDS[kind], iterations=3)
    together, alone = plan(quadratic, few, (2, 2), seed=0), plan(second, few, (1, 2), seed=0)
    torch.testing.assert_close(together.actions[1:], alone.actions)


@pytest.mark.parametrize("kind", KINDS)
def test_a_warm_start_is_never_worse_than_the_plan_it_starts_from(kind: str) -> None:
    poor = replace(KINDS[kind], samples=2, elites=1, iterations=1, knots=(1, 1))
    cost: Cost = lambda actions: (actions - 0.3).square().sum((-1, -2))  # noqa: E731
    before = Plan(torch.full((1, 2, 2), 0.3), torch.zeros(1))
    assert plan(cost, poor, (1, 2), seed=0, before=before, executed=1).cost < 1e-6
    cold = replace(poor, warm_start=False)
    assert plan(cost, cold, (1, 2), seed=0, before=before, executed=1).cost > 1e-6


def test_knots_are_held_and_plans_shifted() -> None:
    actions = spread(torch.tensor([[[1.0], [2.0], [3.0]]]), (1, 1, 2))
    assert actions.flatten().tolist() == [1, 2, 3, 3]
    assert to_knots(actions, (1, 1, 2)).flatten().tolist() == [1, 2, 3]
    assert shift(actions, 2).flatten().tolist() == [3, 3, 3, 3]


def test_actions_stay_within_their_limits() -> None:
    far = torch.tensor([[3.0, 4.0], [0.3, -0.4]])
    torch.testing.assert_close(bound(far, "disc"), torch.tensor([[0.6, 0.8], [0.3, -0.4]]))
    torch.testing.assert_close(bound(far, "box"), torch.tensor([[1.0, 1.0], [0.3, -0.4]]))
    outside = lambda actions: -actions.sum((-1, -2))  # noqa: E731
    found = plan(outside, replace(SEARCH, knots=(1,)), (1, 2), seed=0, limit="disc").actions
    torch.testing.assert_close(found, torch.full((1, 1, 2), 0.5**0.5), atol=0.05, rtol=0)


def walk(*steps: tuple[float, float], start: tuple[float, float] = (0.0, 0.0)) -> Future:
    """One episode with one plan, whose summaries are positions."""
    return Future(torch.tensor([start]), torch.tensor([[steps]]), torch.ones(1, 1, len(steps), 2))


def test_the_three_distances_to_a_goal() -> None:
    future, goal = walk((3.0, 0.0), (8.0, 0.0), (6.0, 0.0)), torch.tensor([[8.0, 0.0]])
    assert float(GoalDistance(goal, 2.0, "last")(future)) == 1
    assert float(GoalDistance(goal, 2.0, "summed")(future)) == pytest.approx((2.5 + 0 + 1) / 3)
    assert float(GoalDistance(goal, 2.0, "reach")(future)) == pytest.approx(1 / 3, abs=0.01)
    early, late = walk((8.0, 0.0), (8.0, 0.0)), walk((4.0, 0.0), (8.0, 0.0))
    assert GoalDistance(goal, 2.0, "reach")(early) < GoalDistance(goal, 2.0, "reach")(late)
    assert torch.equal(GoalDistance(goal, 2.0, "last")(early), GoalDistance(goal, 2.0, "last")(late))


def test_energies_add_up() -> None:
    future, goal = walk((3.0, 0.0)), torch.tensor([[8.0, 0.0]])
    both = GoalDistance(goal, 1.0, "last") + 0.5 * ActionCost()
    assert float(both(future)) == 5.5


def test_a_step_over_a_forbidden_disc_costs_and_a_way_around_does_not() -> None:
    disc = ForbiddenDisc(lambda rows: rows, torch.tensor([[5.0, 0.0]]), radius=2.0, margin=1.0)
    assert float(disc(walk((10.0, 0.0)))) == 3
    assert float(disc(walk((5.0, 2.0), (10.0, 0.0)))) > 0
    assert float(disc(walk((0.0, 5.0), (10.0, 5.0)))) == 0


def test_distance_to_a_segment() -> None:
    point = torch.tensor([[0.0, 2.0], [5.0, 0.0]])
    found = distance_to_segment(point, torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 0.0]))
    assert found.tolist() == [2, 4]


def test_surprise_costs_only_what_is_above_the_threshold() -> None:
    future = replace(walk((0.0, 0.0), (0.0, 0.0)), surprise=torch.tensor([[[-1.0, 3.0]]]))
    assert float(SurpriseCost(1.0)(future)) == 2
    with pytest.raises(ValueError, match=r"rollout.surprise=true"):
        SurpriseCost(1.0)(walk((0.0, 0.0)))


@pytest.mark.parametrize("change", [{"samples": 0}, {"elites": 500}, {"knots": ()}, {"temperature": 0.0}])
def test_impossible_planners_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="planner"):
        PlannerConfig(**change)  # type: ignore[arg-type]
