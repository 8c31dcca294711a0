"""What keeps the representation from collapsing, on distributions whose answer is known."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from vjepa.masks import LONG_RANGE, SHORT_RANGE, MaskConfig, draw_masks
from vjepa.regularise import (
    Regulariser,
    RegulariserConfig,
    centre_per_position,
    draw_directions,
    gaussian_distance,
    motion_weights,
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
        regulariser.score_rows(rows, draw).backward()
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
    with pytest.raises(ValueError, match=r"regulariser.expander has no effect without a term"):
        RegulariserConfig(expander=64)
    with pytest.raises(ValueError, match=r"must be at least 0"):
        RegulariserConfig(sigreg=-1.0)
    with pytest.raises(ValueError, match=r"knots >= 2"):
        RegulariserConfig(knots=1)
    with pytest.raises(ValueError, match=r"they need regulariser.over=tokens"):
        RegulariserConfig(variance=1.0, motion=True, over="pooled")
    with pytest.raises(ValueError, match=r"temporal_margin must be above 0"):
        RegulariserConfig(temporal_margin=0.0)


def null_score(count: Tensor) -> float:
    """Expected SIGReg of Gaussian rows whose positions were seen `count` [n] > 1 times, centred and scaled back.

    Rows of one position then correlate by -1/(c - 1): n E|phi_n - phi|^2 is 1 - e^(-t^2) for a row by itself, and for
    each of its c - 1 partners e^(-t^2 c/(c-1)) - e^(-t^2).
    """
    t = torch.linspace(-3, 3, 601).double()
    total = torch.zeros_like(t)
    for c in count.unique().tolist():
        partners = (c - 1) * ((-t.square() * c / (c - 1)).exp() - (-t.square()).exp())
        total += (count == c).double().mean() * (1 - (-t.square()).exp() + partners)
    return float(torch.trapezoid(total * (-t.square() / 2).exp(), t))


@pytest.mark.parametrize("kind", [SHORT_RANGE, LONG_RANGE])
def test_sigreg_of_gaussian_tokens_is_what_chance_gives_under_the_published_masks(kind: MaskConfig) -> None:
    grid, tokens = (4, 14, 14), 784
    regulariser = Regulariser(RegulariserConfig(sigreg=1.0, slices=32), 64)
    scores, wanted = [], []
    for draw in range(6):
        torch.manual_seed(draw)
        index = draw_masks(kind, grid, torch.arange(24) + 24 * draw, 0).context
        scores.append(regulariser(torch.randn(*index.shape, 64), index, tokens, draw))
        seen = index.flatten().bincount(minlength=tokens)[index.flatten()]
        wanted.append(null_score(seen[seen > 1]))
    found = torch.stack(scores)
    error = float(found.std()) / 6**0.5
    assert 0.5 < float(found.mean()) < 1.1
    assert float(found.mean()) == pytest.approx(sum(wanted) / 6, abs=4 * error)
    assert error < 0.1


def test_row_weights_of_one_size_change_nothing_and_of_nought_leave_a_clip_out() -> None:
    torch.manual_seed(0)
    settings = RegulariserConfig(variance=1.0, covariance=1.0, sigreg=1.0, temporal=1.0, slices=16)
    regulariser = Regulariser(settings, 12)
    index, features = torch.arange(8).repeat(16, 1), 0.3 * torch.randn(16, 8, 12)
    plain = regulariser(features, index, 8, 0, grid=(2, 2, 2))
    same = regulariser(features, index, 8, 0, grid=(2, 2, 2), weights=torch.full((16, 8), 7.0))
    torch.testing.assert_close(same, plain)
    covariance = Regulariser(RegulariserConfig(covariance=1.0), 12)
    weights = torch.ones(16, 8)
    weights[:, 4:] = 0
    half = covariance(features, index, 8, 0, weights=weights)
    torch.testing.assert_close(half, covariance(features[:, :4], index[:, :4], 4, 0), rtol=1e-4, atol=1e-6)


def test_motion_weighs_the_tokens_whose_pixels_change() -> None:
    video = torch.zeros(2, 3, 4, 16, 16)
    video[0, :, 3, :8, 8:] = 0.2  # the upper right patch changes once, in the second tubelet: 0.1 a frame
    video[1, :, 1:, 8:, :8] = 0.1  # the lower left one in the first: its first frame counts as its second, 0.1 a frame
    wanted = torch.full((2, 8), 0.02)
    wanted[0, 5] = wanted[1, 2] = 1.02
    torch.testing.assert_close(motion_weights(video, 2, 8), wanted)
    torch.testing.assert_close(motion_weights(video / 11, 2, 8), torch.full((2, 8), 0.02))  # 0.009: noise
    torch.testing.assert_close(motion_weights(video[:, :, :1], 1, 8), torch.full((2, 4), 0.02))  # an image


def test_motion_without_weights_and_temporal_without_a_grid_are_refused() -> None:
    features, index = torch.randn(4, 8, 6), torch.arange(8).repeat(4, 1)
    with pytest.raises(ValueError, match=r"regulariser.motion needs token weights"):
        Regulariser(RegulariserConfig(variance=1.0, motion=True), 6)(features, index, 8, 0)
    with pytest.raises(ValueError, match=r"regulariser.temporal needs the token grid"):
        Regulariser(RegulariserConfig(temporal=1.0), 6)(features, index, 8, 0)


def test_temporal_term_sees_only_what_changes_within_a_clip() -> None:
    torch.manual_seed(0)
    grid, index = (4, 2, 2), torch.arange(16).repeat(12, 1)
    regulariser = Regulariser(RegulariserConfig(temporal=1.0), 6)
    still = 3 * torch.randn(12, 1, 4, 6).expand(-1, 4, -1, -1).flatten(1, 2)  # differs by clip and place
    position = 3 * torch.randn(1, 16, 6)  # and by position
    assert regulariser(still + position, index, 16, 0, grid=grid) == pytest.approx(0.5 - 0.01, abs=1e-3)
    moving = torch.randn(12, 16, 6)
    plain = Regulariser(RegulariserConfig(temporal=1.0, variance=1e-9), 6)  # no covariance: the hinge alone
    assert plain(still + position + moving, index, 16, 0, grid=grid) < 1e-6


def test_temporal_deviation_is_unbiased_and_its_covariance_keeps_the_ratio() -> None:
    torch.manual_seed(0)
    grid = (4, 3, 3)
    index = torch.stack([torch.randperm(36)[:24] for _ in range(60)])
    features = 0.4 * torch.randn(60, 24, 2)
    features[..., 1] = features[..., 0]  # fully correlated: the covariance is 0.4^2 twice, over two channels
    hinge = Regulariser(RegulariserConfig(temporal=1.0, variance=1e-9), 2)(features, index, 36, 0, grid=grid)
    assert hinge == pytest.approx(0.1, abs=0.02)
    ratio = RegulariserConfig(temporal=2.0, variance=0.5, covariance=0.25)
    assert ratio.over_time == 1.0
    assert RegulariserConfig(temporal=2.0).over_time == 2 / 25
    assert RegulariserConfig(temporal=2.0, covariance=0.5, temporal_covariance=0.0).over_time == 0.0
    with pytest.raises(ValueError, match=r"temporal_covariance must be at least 0, and needs .* 0.1 with temporal=0"):
        RegulariserConfig(temporal_covariance=0.1)
    both = Regulariser(RegulariserConfig(temporal=1.0), 2)(features, index, 36, 0, grid=grid)
    assert float(both - hinge) * 25 == pytest.approx(0.4**4, rel=0.2)


@pytest.mark.parametrize(("variance", "covariance", "rank"), [(1.0, 1.0, 2), (1.0, 0.04, 2), (1.0, 1.0, 8)])
def test_equal_weights_pay_for_shrinking_low_rank_features(variance: float, covariance: float, rank: int) -> None:
    """Of rank r and deviation s in D channels: v (1 - s) + c D s^4 / r, least at s = (r v / 4 c D)^(1/3)."""
    torch.manual_seed(0)
    width, index = 64, torch.arange(4).repeat(256, 1)
    directions = torch.linalg.qr(torch.randn(rank, rank)).Q.repeat(width // rank, 1)  # all channels of one deviation
    features = torch.randn(256, 4, rank) @ directions.T * rank**0.5 / directions.norm(dim=1).mean() / rank**0.5
    regulariser = Regulariser(RegulariserConfig(variance=variance, covariance=covariance), width)
    scales = torch.linspace(0.02, 1.2, 119)
    found = scales[torch.stack([regulariser(scale * features, index, 4, 0) for scale in scales]).argmin()]
    wanted = (rank * variance / (4 * covariance * width)) ** (1 / 3)
    assert float(found) == pytest.approx(wanted, rel=0.1)


def balanced_terms(features: Tensor, steps: int) -> tuple[Regulariser, list[float]]:
    """A balanced regulariser and its factor after each of `steps` calls on the same features."""
    regulariser = Regulariser(RegulariserConfig(variance=1.0, covariance=0.04, balance=True), features.shape[2])
    index, factors = torch.arange(features.shape[1]).expand(len(features), -1), []
    for step in range(steps):
        regulariser(features, index, features.shape[1], step)
        assert regulariser.balance is not None
        factors.append(regulariser.balance.factor.item())
    return regulariser, factors


def test_the_factor_of_all_terms_rises_while_features_shrink_and_falls_while_they_do_not() -> None:
    features = torch.randn(32, 4, 8, generator=torch.Generator().manual_seed(0))
    _, shrunk = balanced_terms(0.01 * features, 20)
    _, spread = balanced_terms(2 * features, 20)
    assert shrunk == sorted(shrunk)
    assert shrunk[-1] > 2
    assert spread == sorted(spread, reverse=True)
    assert spread[-1] < 0.95


def test_the_factor_multiplies_all_terms_and_rests_in_evaluation() -> None:
    features = 0.1 * torch.randn(32, 4, 8, generator=torch.Generator().manual_seed(0))
    regulariser, factors = balanced_terms(features, 20)
    plain = Regulariser(replace(regulariser.config, balance=False), 8).eval()
    index = torch.arange(4).expand(32, -1)
    scaled = regulariser.eval()(features, index, 4, 0)
    torch.testing.assert_close(scaled, factors[-1] * plain(features, index, 4, 0))
    assert regulariser.balance is not None
    assert regulariser.balance.factor.item() == factors[-1]


def test_the_factor_is_bounded_and_stored() -> None:
    regulariser, factors = balanced_terms(torch.zeros(4, 2, 8), 200)
    assert factors[-1] == pytest.approx(10.0)
    assert "balance.log_factor" in regulariser.state_dict()
    with pytest.raises(ValueError, match=r"regulariser.balance follows the variance term"):
        RegulariserConfig(sigreg=0.1, balance=True)
