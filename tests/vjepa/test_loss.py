"""The losses and the gauges on values whose answer is known."""

import math

import pytest
import torch

from vjepa.gauges import collapse_gauges, effective_rank, uniformity
from vjepa.loss import contrastive_loss, prediction_loss


def test_prediction_loss_is_the_mean_power_over_p() -> None:
    prediction, target = torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 0.0]])
    assert prediction_loss(prediction, target, 1.0) == pytest.approx(2.0)
    assert prediction_loss(prediction, target, 2.0) == pytest.approx((1 + 9) / 2 / 2)


def test_a_weight_counts_a_token_that_much() -> None:
    prediction, target = torch.tensor([[[1.0, 3.0], [5.0, 5.0]]]), torch.zeros(1, 2, 2)
    assert prediction_loss(prediction, target, 1.0, torch.tensor([[1.0, 0.0]])) == pytest.approx(2.0 / 2)
    assert prediction_loss(prediction, target, 2.0, torch.tensor([[0.5, 1.0]])) == pytest.approx((2.5 + 25) / 2 / 2)


def test_contrast_is_the_cross_entropy_over_partners() -> None:
    first, second = torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    right, wrong = math.exp(1 / 0.5), math.exp(0 / 0.5)
    across = (-math.log(right / (right + right)) - math.log(wrong / (wrong + wrong))) / 2  # rows: both partners alike
    back = (-math.log(right / (right + wrong)) - math.log(wrong / (right + wrong))) / 2
    assert contrastive_loss(first, 3 * second, 0.5) == pytest.approx((across + back) / 2)
    assert contrastive_loss(torch.eye(8), torch.eye(8), 0.05) < 1e-6


def test_effective_rank_counts_directions() -> None:
    torch.manual_seed(0)
    assert effective_rank(torch.randn(4000, 16)) == pytest.approx(16, abs=0.2)
    plane = torch.randn(4000, 3) @ torch.linalg.qr(torch.randn(16, 3)).Q.T
    assert effective_rank(plane) == pytest.approx(3, abs=0.1)
    assert effective_rank(torch.ones(10, 16)) == pytest.approx(1, abs=0.01)


def test_gauges_tell_healthy_positional_and_constant_features_apart() -> None:
    torch.manual_seed(0)
    healthy = collapse_gauges(torch.randn(32, 20, 16))
    positional = collapse_gauges(torch.randn(1, 20, 16) + 0.01 * torch.randn(32, 1, 1))
    assert healthy["spread"] > 0.9
    assert healthy["rank"] > 14
    assert healthy["pooled_rank"] > 8
    assert positional["spread"] < 0.05
    assert positional["rank"] < 1.5
    assert positional["pooled_rank"] < 1.5


def test_uniformity_tells_a_cluster_from_a_sphere() -> None:
    torch.manual_seed(0)
    assert uniformity(torch.randn(64, 16)) < -3
    two_points = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]).repeat(32, 1)
    assert uniformity(two_points) > -0.8  # half of the pairs are at one point
