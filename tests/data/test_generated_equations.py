"""The solvers against exact solutions, conserved quantities and their own halved steps."""

import numpy as np
import pytest

from data.generated.spectral import Real, solve_line, solve_vorticity

X = 2 * np.pi * np.arange(128) / 128


def cole_hopf(viscosity: float, time: float) -> Real:
    """Burgers' equation from -2 viscosity phi_x / phi, where phi = 1.5 + cos x diffuses."""
    decay = np.exp(-viscosity * time)
    exact: Real = 2 * viscosity * decay * np.sin(X) / (1.5 + decay * np.cos(X))
    return exact


def test_burgers_is_the_exact_solution_of_cole_and_hopf() -> None:
    found = solve_line(cole_hopf(0.3, 0), 2 * np.pi, {2: 0.3}, 11, 0.2, 10)
    for frame in (0, 5, 10):
        np.testing.assert_allclose(found[frame], cole_hopf(0.3, 0.2 * frame), atol=1e-9)
    assert np.abs(found[10]).max() < 0.6 * np.abs(found[0]).max()


def test_kdv_keeps_mass_and_energy() -> None:
    start = 0.3 + np.cos(X) + 0.4 * np.sin(2 * X)
    found = solve_line(start, 2 * np.pi, {3: -0.03}, 16, 0.08, 24)
    assert np.abs(found[-1] - found[0]).max() > 0.3
    np.testing.assert_allclose(found.sum(axis=1), found[0].sum(), rtol=1e-12)
    np.testing.assert_allclose((found**2).sum(axis=1), (found[0] ** 2).sum(), rtol=1e-6)


@pytest.mark.parametrize("powers", [{2: 0.05}, {3: -0.03}, {2: -1.0, 4: -0.7}])
def test_halving_the_step_divides_the_error_by_sixteen(powers: dict[int, float]) -> None:
    start = np.cos(X) + 0.4 * np.sin(2 * X)
    coarse, fine, finest = (solve_line(start, 2 * np.pi, powers, 2, 0.8, steps)[1] for steps in (40, 80, 640))
    ratio = np.abs(coarse - finest).max() / np.abs(fine - finest).max()
    assert 11 < ratio < 24


def test_a_cellular_flow_decays_exactly() -> None:
    x, y = np.meshgrid(X[::4], X[::4])
    start = 2 * np.cos(x) * np.cos(y)  # its own advection vanishes
    found = solve_vorticity(start, 0.1, 6, 0.5, 6)
    np.testing.assert_allclose(found[5], np.exp(-2 * 0.1 * 2.5) * start, atol=1e-9)


def test_a_flow_without_viscosity_keeps_its_enstrophy() -> None:
    x, y = np.meshgrid(X[::4], X[::4])
    start = np.sin(x) + np.cos(2 * y + 1) + np.sin(x + y)
    found = solve_vorticity(start, 0.0, 6, 0.1, 8)
    assert np.abs(found[-1] - found[0]).max() > 0.1
    np.testing.assert_allclose((found**2).sum(axis=(1, 2)), (start**2).sum(), rtol=1e-5)
