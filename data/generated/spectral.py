"""Pseudo-spectral solvers for periodic equations u_t = L u + N(u), with L diagonal in Fourier space; float64.

ETDRK4 integrates L exactly and N with four Runge-Kutta stages; its coefficients are means over a circle in the complex
plane, which stay accurate for L close to 0. T frames, n points per side.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Real = npt.NDArray[np.float64]
Spectrum = npt.NDArray[np.complex128]

_CIRCLE = 16  # points on the circle


class Etdrk4:
    """An ETDRK4 integrator with step size `step` for a linear part [modes]."""

    def __init__(self, linear: npt.NDArray[Any], step: float, nonlinear: Callable[[Spectrum], Spectrum]) -> None:
        z = step * linear.astype(complex)[..., None] + np.exp(2j * np.pi * (np.arange(_CIRCLE) + 0.5) / _CIRCLE)
        whole, half = np.exp(z), np.exp(z / 2)
        self._nonlinear = nonlinear
        self._whole, self._half = np.exp(step * linear), np.exp(step * linear / 2)
        self._q = step * ((half - 1) / z).mean(axis=-1)
        self._first = step * ((-4 - z + whole * (4 - 3 * z + z**2)) / z**3).mean(axis=-1)
        self._middle = step * (2 * (2 + z + whole * (z - 2)) / z**3).mean(axis=-1)
        self._last = step * ((-4 - 3 * z - z**2 + whole * (4 - z)) / z**3).mean(axis=-1)

    def advance(self, u: Spectrum) -> Spectrum:
        """The spectrum one step later."""
        at_u = self._nonlinear(u)
        a = self._half * u + self._q * at_u
        at_a = self._nonlinear(a)
        at_b = self._nonlinear(self._half * u + self._q * at_a)
        at_c = self._nonlinear(self._half * a + self._q * (2 * at_b - at_u))
        after: Spectrum = self._whole * u + self._first * at_u + self._middle * (at_a + at_b) + self._last * at_c
        return after


def solve_line(u: Real, length: float, powers: dict[int, float], frames: int, interval: float, substeps: int) -> Real:
    """u_t = -u u_x + sum of factor * (d/dx)^power u with period `length`: u [n] -> [T, n], a frame every `interval`."""
    points = len(u)
    wave = 2 * np.pi / length * np.arange(points // 2 + 1)
    linear = sum(factor * (1j * wave) ** power for power, factor in powers.items()) + np.zeros(len(wave), complex)
    kept = np.arange(points // 2 + 1) <= points / 3  # 2/3 rule: products of two kept waves are not aliased
    slope = -0.5j * wave * kept

    def nonlinear(spectrum: Spectrum) -> Spectrum:
        product: Spectrum = slope * np.fft.rfft(np.fft.irfft(spectrum, points) ** 2)
        return product

    stepper = Etdrk4(linear, interval / substeps, nonlinear)
    spectrum, shown = np.fft.rfft(u) * kept, []
    for _ in range(frames):
        shown.append(np.fft.irfft(spectrum, points))
        for _ in range(substeps):
            spectrum = stepper.advance(spectrum)
    return np.stack(shown)


def solve_vorticity(vorticity: Real, viscosity: float, frames: int, interval: float, substeps: int) -> Real:
    """Vorticity [n, n] of a flow on the torus with side 2 pi, w_t = -u . grad w + viscosity lap w -> [T, n, n]."""
    points = len(vorticity)
    ky, kx = np.meshgrid(np.fft.fftfreq(points, 1 / points), np.arange(points // 2 + 1.0), indexing="ij")
    square = kx**2 + ky**2
    kept = np.maximum(np.abs(kx), np.abs(ky)) <= points / 3
    inverse = 1 / np.maximum(square, 1)
    # velocity (u, v) = (psi_y, -psi_x) with -lap psi = w, and the gradient of w: one batched transform of four fields
    factors = np.stack([1j * ky * inverse, -1j * kx * inverse, 1j * kx, 1j * ky])

    def nonlinear(spectrum: Spectrum) -> Spectrum:
        u, v, along_x, along_y = np.fft.irfft2(factors * spectrum, (points, points))
        product: Spectrum = -1.0 * kept * np.fft.rfft2(u * along_x + v * along_y)
        return product

    stepper = Etdrk4(-viscosity * square, interval / substeps, nonlinear)
    spectrum, shown = np.fft.rfft2(vorticity) * kept, []
    for _ in range(frames):
        shown.append(np.fft.irfft2(spectrum, (points, points)))
        for _ in range(substeps):
            spectrum = stepper.advance(spectrum)
    return np.stack(shown)
