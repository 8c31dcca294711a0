"""The loss and the regulariser on distributions whose answer is known."""

import pytest
import torch

from vjepa.gauges import collapse_gauges, effective_rank
from vjepa.loss import LossConfig, centre_per_position, prediction_loss, regulariser, variance_covariance


def test_prediction_loss_is_the_mean_power_over_p() -> None:
    prediction, target = torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 0.0]])
    assert prediction_loss(prediction, target, 1.0) == pytest.approx(2.0)
    assert prediction_loss(prediction, target, 2.0) == pytest.approx((1 + 9) / 2 / 2)


def test_variance_and_covariance_of_constructed_features() -> None:
    root = 3**0.5
    independent = torch.tensor([[root, root], [root, -root], [-root, root], [-root, -root]])
    assert variance_covariance(independent, 4) == pytest.approx((0.0, 0.0), abs=1e-6)  # variance 3, no covariance
    equal = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    hinge, covariance = variance_covariance(equal, 2)
    assert hinge == pytest.approx(0.0, abs=1e-4)
    assert covariance == pytest.approx(1.0)  # two off-diagonal ones over two channels
    hinge, covariance = variance_covariance(torch.zeros(4, 2), 4)
    assert hinge == pytest.approx(1 - 0.01)  # sqrt(1e-4) is added to a deviation of 0
    assert covariance == 0


def test_centring_removes_what_the_position_explains() -> None:
    place = torch.randn(5, 8)
    index = torch.tensor([[0, 1, 4], [0, 3, 4], [2, 3, 4], [0, 1, 2]])
    centred, freedom = centre_per_position(place[index], index, 5)
    torch.testing.assert_close(centred, torch.zeros(12, 8), atol=1e-6, rtol=0)
    assert freedom == 12 - 5


def test_variance_is_unbiased_by_the_centring() -> None:
    torch.manual_seed(0)
    index = torch.stack([torch.randperm(100)[:30] for _ in range(8)])
    centred, freedom = centre_per_position(torch.randn(8, 30, 64), index, 100)
    assert float((centred.square().sum(0) / freedom).mean()) == pytest.approx(1.0, abs=0.1)


def test_positional_features_are_punished_and_varied_ones_are_not() -> None:
    torch.manual_seed(0)
    config = LossConfig(variance=1.0)
    index = torch.arange(10).repeat(16, 1)
    positional = torch.randn(10, 32).expand(16, -1, -1)
    assert regulariser(config, positional, index, 10) > 0.9
    assert regulariser(config, 2 * torch.randn(16, 10, 32), index, 10) < 0.01


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
