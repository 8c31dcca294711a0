"""Gauges on features whose health is known."""

import math

import pytest
import torch
from torch import Tensor

from vjepa.gauges import collapse_gauges, cosine_across_clips, count_directions, prediction_spread, step_gauges
from vjepa.objectives.objective import MaskPrediction, StepOutput


def everywhere(clips: int, tokens: int) -> Tensor:
    return torch.arange(tokens).expand(clips, -1)


def predict(targets: Tensor, prediction: Tensor, name: str = "future") -> MaskPrediction:
    """The last tokens predicted from the first ones."""
    clips, tokens, _ = targets.shape
    first, last = everywhere(clips, tokens).split([tokens // 4, tokens - tokens // 4], 1)
    context = torch.randn(clips, first.shape[1], targets.shape[2])
    return MaskPrediction(name, first, last, context, prediction[:, tokens // 4 :], torch.tensor(0.5))


def test_cosine_is_the_mean_over_all_pairs_of_clips_at_a_position() -> None:
    torch.manual_seed(0)
    features = torch.randn(5, 3, 8)
    index = torch.tensor([[0, 1, 4], [0, 3, 4], [2, 3, 4], [0, 1, 2], [0, 1, 4]])
    unit = torch.nn.functional.normalize(features, dim=-1)
    pairs = [
        float(unit[a, i] @ unit[b, j])
        for a in range(5) for b in range(5) for i in range(3) for j in range(3)
        if a != b and index[a, i] == index[b, j]
    ]  # fmt: skip
    assert cosine_across_clips(features, index, 5) == pytest.approx(sum(pairs) / len(pairs), abs=1e-5)


def test_cosine_of_clips_that_share_no_position_is_not_a_number() -> None:
    assert math.isnan(cosine_across_clips(torch.randn(2, 2, 4), torch.tensor([[0, 1], [2, 3]]), 4))


def test_features_that_only_know_their_position_show_in_the_cosine() -> None:
    torch.manual_seed(0)
    positional = torch.randn(1, 20, 16) + 0.01 * torch.randn(32, 20, 16)
    assert collapse_gauges(positional)["cosine"] > 0.99
    assert abs(collapse_gauges(torch.randn(32, 20, 16))["cosine"]) < 0.05


def test_rank_counts_energies_and_rankme_their_roots() -> None:
    equal, dominated = torch.ones(4), torch.tensor([100.0, 1.0, 1.0, 1.0])
    assert count_directions(equal) == pytest.approx(4)
    shares = (100 / 103, 1 / 103, 1 / 103, 1 / 103)
    assert count_directions(dominated) == pytest.approx(math.exp(-sum(share * math.log(share) for share in shares)))
    roots = (10 / 13, 1 / 13, 1 / 13, 1 / 13)
    assert count_directions(dominated.sqrt()) == pytest.approx(math.exp(-sum(root * math.log(root) for root in roots)))


def test_gauges_of_some_positions_equal_those_of_all_where_all_are_given() -> None:
    torch.manual_seed(0)
    features = torch.randn(6, 10, 8)
    shuffled = torch.stack([torch.randperm(10) for _ in range(6)])
    moved = features.gather(1, shuffled.unsqueeze(-1).expand(-1, -1, 8))
    assert collapse_gauges(moved, shuffled, 10) == pytest.approx(collapse_gauges(features), rel=1e-4)


def test_a_batch_of_one_clip_says_nothing() -> None:
    assert all(math.isnan(value) for value in collapse_gauges(torch.randn(1, 10, 8)).values())


def test_features_that_are_not_finite_say_nothing() -> None:
    features = torch.randn(4, 10, 8)
    features[2, 3, 4] = math.inf
    assert all(math.isnan(value) for value in collapse_gauges(features).values())


def test_a_prediction_of_the_mean_has_no_spread_and_a_perfect_one_has_all() -> None:
    torch.manual_seed(0)
    targets = torch.randn(16, 8, 12)
    guess = targets.mean(0).expand_as(targets)
    assert prediction_spread(predict(targets, guess), targets) == pytest.approx(0, abs=1e-5)
    assert prediction_spread(predict(targets, targets), targets) == pytest.approx(1)
    assert prediction_spread(predict(targets, (guess + targets) / 2), targets) == pytest.approx(0.5, rel=1e-4)


def test_a_step_is_read_by_kind_of_mask_and_its_lengths_are_shares_of_the_grid() -> None:
    torch.manual_seed(0)
    targets = torch.randn(4, 16, 12)
    kinds = [predict(targets, targets, "near"), predict(targets, targets, "far")]
    found = step_gauges(StepOutput(torch.tensor(1.0), {}, (4, 2, 2), targets, kinds), targets)
    assert found["lengths/near/context"] == 0.25
    assert found["lengths/far/target"] == 0.75
    assert found["gauges/prediction_spread/near"] == pytest.approx(1)
    assert found["gauges/context_rank"] > 1
    assert "gauges/context_pooled_rank" not in found


def test_a_step_that_predicts_nothing_is_read_by_its_features_alone() -> None:
    torch.manual_seed(0)
    found = step_gauges(StepOutput(torch.tensor(1.0), {}, (4, 2, 2)), torch.randn(4, 16, 12))
    assert sorted(found) == [f"gauges/{name}" for name in ("cosine", "pooled_rank", "rank", "rankme", "spread")]
