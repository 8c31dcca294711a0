"""What keeps the representation from collapsing, on distributions whose answer is known."""

import math

import pytest
import torch
from torch import Tensor

from vjepa.regularise import (
    Regulariser,
    RegulariserConfig,
    centre_per_position,
    draw_directions,
    gaussian_distance,
    variance_covariance,
)


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
    regulariser = Regulariser(RegulariserConfig(variance=1.0), 32)
    index = torch.arange(10).repeat(16, 1)
    positional = torch.randn(10, 32).expand(16, -1, -1)
    assert regulariser(positional, index, 10, 0) > 0.9
    assert regulariser(2 * torch.randn(16, 10, 32), index, 10, 0) < 0.01


def test_gaussian_distance_is_the_written_out_integral() -> None:
    """n times the integral over t in [-3, 3] of |phi_n(t) - exp(-t^2/2)|^2 exp(-t^2/2), by a fine sum."""
    torch.manual_seed(0)
    rows = torch.randn(50, 3) * torch.tensor([1.0, 2.0, 0.3]) + torch.tensor([0.0, 0.5, 0.0])
    total, step = 0.0, 0.001
    for column in rows.T.double():
        for number in range(6000):
            t = -3 + (number + 0.5) * step
            empirical = torch.exp(1j * t * column).mean()
            total += step * float((empirical - math.exp(-t * t / 2)).abs() ** 2) * math.exp(-t * t / 2)
    assert gaussian_distance(rows, 65) == pytest.approx(50 * total / 3, rel=1e-3)
    assert gaussian_distance(rows, 17) == pytest.approx(50 * total / 3, rel=2e-2)


def sigreg(rows: Tensor) -> float:
    """SIGReg of rows [n, E], by row."""
    return float(gaussian_distance(rows @ draw_directions(rows.shape[1], 256, 0, rows.device), 17)) / len(rows)


def test_sigreg_is_small_for_a_gaussian_alone() -> None:
    torch.manual_seed(0)
    n, width = 4096, 16
    gaussian = torch.randn(n, width)
    assert sigreg(gaussian) < 1e-3
    point = torch.zeros(n, width)
    line = torch.randn(n, 1) @ torch.ones(1, width) / 4
    cube_corners = 2 * torch.randint(0, 2, (n, width)).float() - 1
    clusters = torch.randn(4, width).repeat(n // 4, 1)
    assert sigreg(point) > 0.3
    for strange, least in ((line, 0.03), (clusters, 0.03), (3 * gaussian, 0.1), (0.3 * gaussian, 0.1)):
        assert sigreg(strange) > least
    assert sigreg(cube_corners) < 0.03  # most slices of a cube look Gaussian: the test sees what slices see


def test_directions_are_unit_vectors_that_follow_from_the_draw() -> None:
    first = draw_directions(16, 8, 3, torch.device("cpu"))
    torch.manual_seed(7)
    assert torch.equal(first, draw_directions(16, 8, 3, torch.device("cpu")))
    assert not torch.equal(first, draw_directions(16, 8, 4, torch.device("cpu")))
    torch.testing.assert_close(first.norm(dim=0), torch.ones(8))


def test_sigreg_pulls_a_collapsed_cloud_apart() -> None:
    torch.manual_seed(0)
    rows = (1e-2 * torch.randn(64, 8)).requires_grad_()
    regulariser = Regulariser(RegulariserConfig(sigreg=1.0, slices=32), 8)
    optimizer = torch.optim.Adam([rows], lr=0.05)
    for draw in range(200):
        optimizer.zero_grad()
        regulariser.judge(rows, draw).backward()
        optimizer.step()
    assert float(rows.detach().std(0).mean()) == pytest.approx(1.0, abs=0.15)


def test_pooled_terms_look_at_the_mean_token_of_a_clip() -> None:
    torch.manual_seed(0)
    pooled = Regulariser(RegulariserConfig(variance=1.0, over="pooled"), 8)
    index = torch.arange(6).repeat(64, 1)
    cancelling = torch.randn(64, 3, 8).repeat(1, 2, 1) * torch.tensor([1.0, 1, 1, -1, -1, -1])[:, None]
    assert pooled(cancelling, index, 6, 0) > 0.95  # every token varies, their mean does not
    assert pooled(torch.randn(64, 1, 8).expand(-1, 6, -1) * 2, index, 6, 0) < 0.02


def test_terms_behind_an_expander_reach_encoder_and_expander() -> None:
    for over in ("tokens", "pooled"):
        regulariser = Regulariser(RegulariserConfig(variance=1.0, sigreg=0.1, expander=16, over=over), 8)
        features = torch.randn(6, 5, 8, requires_grad=True)
        regulariser(features, torch.arange(5).repeat(6, 1), 5, 0).backward()
        assert features.grad.abs().sum() > 0
        assert all(parameter.grad is not None for parameter in regulariser.parameters())


def test_config_refuses_what_cannot_be_meant() -> None:
    with pytest.raises(ValueError, match=r"regulariser.expander needs a term"):
        RegulariserConfig(expander=64)
    with pytest.raises(ValueError, match=r"must be at least 0"):
        RegulariserConfig(sigreg=-1.0)
    with pytest.raises(ValueError, match=r"knots >= 2"):
        RegulariserConfig(knots=1)
