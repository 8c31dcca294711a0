"""Positions against formulas written out here."""

import math

import pytest
import torch

from vjepa.positions import interpolate_table, rotary_rotation, rotate, sincos_table


@pytest.mark.parametrize("width", [192, 384, 1024])
def test_sincos_table_equals_the_formula(width: int) -> None:
    grid = (3, 4, 5)
    table = sincos_table(width, grid)
    axis = math.ceil(width / 6) * 2
    for t, h, w in [(0, 0, 0), (2, 1, 3), (1, 3, 4)]:
        row = []
        for position in (t, h, w):
            frequency = [1 / 10000 ** (i / (axis / 2)) for i in range(axis // 2)]
            row += [math.sin(position * f) for f in frequency] + [math.cos(position * f) for f in frequency]
        torch.testing.assert_close(table[(t * 4 + h) * 5 + w], torch.tensor(row[:width]), atol=1e-6, rtol=0)


def test_interpolation_keeps_its_own_grid_and_a_linear_ramp() -> None:
    grid = (2, 4, 4)
    ramp = torch.arange(4.0).repeat(8).unsqueeze(1)
    assert interpolate_table(ramp, grid, grid) is ramp
    doubled = interpolate_table(ramp, grid, (2, 4, 8))[:8, 0]
    torch.testing.assert_close(doubled, torch.tensor([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0]))


def test_interleaved_rotation_keeps_lengths_and_depends_on_distance_only() -> None:
    rotation = rotary_rotation(24, (4, 1, 1), "interleaved")
    query, key = torch.randn(2, 1, 1, 1, 24, generator=torch.Generator().manual_seed(0)).expand(2, 1, 1, 4, 24)
    query, key = rotate(query, rotation), rotate(key, rotation)
    torch.testing.assert_close(query.norm(dim=-1), query.norm(dim=-1)[..., :1].expand(1, 1, 4))
    product = (query @ key.transpose(-1, -2))[0, 0]
    torch.testing.assert_close(product[0, 1], product[2, 3])
    assert not torch.isclose(product[0, 1], product[0, 2])


def test_tiled_order_turns_the_channels_of_a_pair_by_two_frequencies() -> None:
    cosine, _ = rotary_rotation(24, (4, 1, 1), "tiled")
    plain, _ = rotary_rotation(24, (4, 1, 1), "interleaved")
    torch.testing.assert_close(cosine[:, :4], cosine[:, 4:8])
    torch.testing.assert_close(plain[:, 0:8:2], plain[:, 1:8:2])
    assert not torch.allclose(cosine, plain)


def test_channels_beyond_three_axes_are_not_rotated() -> None:
    cosine, sine = rotary_rotation(32, (2, 2, 2), "tiled")
    assert (cosine[:, 30:] == 1).all()
    assert (sine[:, 30:] == 0).all()
    assert (sine[1:, :30] != 0).any()
