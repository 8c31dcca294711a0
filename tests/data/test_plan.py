"""The order of samples is a pure function of (counts, seed, epoch)."""

from data.loading.plan import Plan, draw_for, permute

COUNTS = [5, 3, 0, 7, 4, 6]


def _order(plan: Plan, positions: range) -> list[tuple[int, int]]:
    return [(plan.find(p).shard, plan.find(p).index) for p in positions]


def test_every_sample_once_per_epoch() -> None:
    everything = sorted((shard, index) for shard, count in enumerate(COUNTS) for index in range(count))
    for group in (1, 2, 4, 100):
        plan = Plan(COUNTS, seed=3, shuffle_shards=group)
        for epoch in range(3):
            assert sorted(_order(plan, range(25 * epoch, 25 * epoch + 25))) == everything


def test_order_differs_between_epochs_and_seeds() -> None:
    plan, other = Plan(COUNTS, 3, 2), Plan(COUNTS, 4, 2)
    assert _order(plan, range(25)) != _order(plan, range(25, 50))
    assert _order(plan, range(25)) != _order(other, range(25))


def test_order_does_not_depend_on_where_one_begins() -> None:
    whole = _order(Plan(COUNTS, 3, 2), range(100))
    for start in (1, 24, 25, 61):
        assert _order(Plan(COUNTS, 3, 2), range(start, 100)) == whole[start:]
    backwards = Plan(COUNTS, 3, 2)
    assert [_order(backwards, range(p, p + 1))[0] for p in reversed(range(100))] == whole[::-1]


def test_a_group_needs_few_shards_at_a_time() -> None:
    plan = Plan(COUNTS, 3, 2)
    for position in range(25):
        shards = {plan.find(other).shard for other in plan.find(position).group}
        assert len(shards) <= 2
        assert position in plan.find(position).group


def test_order_is_the_same_for_ever() -> None:
    assert permute(8, (1, 2, 3)).tolist() == [1, 2, 4, 6, 5, 0, 7, 3]
    assert _order(Plan([3, 2, 2], 0, 2), range(7)) == [(1, 1), (0, 1), (0, 2), (0, 0), (1, 0), (2, 1), (2, 0)]


def test_draws_repeat_and_differ_between_samples() -> None:
    assert draw_for(1, 2, "a").random() == draw_for(1, 2, "a").random()
    assert len({draw_for(*words).random() for words in ((1, 2, "a"), (2, 2, "a"), (1, 3, "a"), (1, 2, "b"))}) == 4
