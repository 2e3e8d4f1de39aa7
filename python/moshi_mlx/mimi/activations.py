"""The codec's non-linearities, as cheap as each device allows.

MLX's CPU backend computes exponentials and error functions one number at a time, some 10-30 ns each, half a million of
them a frame. Additions, products and quotients are vectorized, so there both functions are written in those.
"""

from __future__ import annotations

import math

import mlx.core as mx

from ..layers import can_compile, on_cpu

_WORTH_POLYNOMIAL = 1 << 14
"""Numbers from which two dozen plain vectorized operations beat one `expm1`, where they can't be fused."""

_HALVINGS = 3
# Abramowitz and Stegun 7.1.26: erfc(z) = t (a1 + t (a2 + ...)) exp(-z²) with t = 1 / (1 + p z), within 1.5e-7.
_ERFC_P = 0.3275911
_ERFC = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)


def elu(x: mx.array) -> mx.array:
    """Exponential linear unit."""
    if not on_cpu() or (not can_compile() and x.size < _WORTH_POLYNOMIAL):
        return mx.maximum(x, mx.expm1(mx.minimum(x, 0)))
    size = mx.abs(x)
    return 0.5 * (x + size) - decay(0.5 * (size - x))


def gelu(x: mx.array) -> mx.array:
    """Gaussian error linear unit, the exact one."""
    if not on_cpu() or not can_compile():
        return x * (0.5 + 0.5 * mx.erf(x * math.sqrt(0.5)))
    size = mx.abs(x)
    z = math.sqrt(0.5) * size
    t = 1 / (1 + _ERFC_P * z)
    a1, a2, a3, a4, a5 = _ERFC
    tail = t * (a1 + t * (a2 + t * (a3 + t * (a4 + t * a5)))) * (1 - decay(z * z))
    return 0.5 * (x + size - size * tail)


def decay(x: mx.array) -> mx.array:
    """1 - exp(-x) for x of at least 0, within 4e-7 of its value, by vectorized operations alone.

    A Taylor polynomial at x / 8, then 1 - exp(-2y) = m (2 - m), which damps errors, three times over. Its terms are
    paired, as a fused kernel has a limited depth.
    """
    y = x * 2.0**-_HALVINGS
    y2 = y * y
    high = (1 / 120 + y * (1 / 720)) + y2 * (1 / 5040)
    grown = y * ((1 + y * (1 / 2)) + y2 * ((1 / 6 + y * (1 / 24)) + y2 * high))
    m = grown / (1 + grown)
    for _ in range(_HALVINGS):
        m = m * (2 - m)
    return m
