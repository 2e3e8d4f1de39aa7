"""The codec's non-linearities, as cheap as each device allows.

MLX's CPU backend computes exponentials and error functions one number at a time, some 10-30 ns each, half a million of
them a frame. Additions, products and quotients are vectorized, so there both functions are written in those.
"""

from __future__ import annotations

import math
from typing import cast

import mlx.core as mx

from ..fast_math import decay
from ..layers import can_compile, compiled, on_cpu

_WORTH_POLYNOMIAL = 1 << 14
"""Numbers from which two dozen plain vectorized operations beat one `expm1`, where they can't be fused."""

_DENSITY = (2 * math.pi) ** -0.5
"""Of the normal distribution at its mean."""

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
    return cast(mx.array, _smooth_gelu(x))


def _tail(size: mx.array) -> mx.array:
    """erfc(x / sqrt 2) for x of at least 0."""
    z = math.sqrt(0.5) * size
    t = 1 / (1 + _ERFC_P * z)
    a1, a2, a3, a4, a5 = _ERFC
    return t * (a1 + t * (a2 + t * (a3 + t * (a4 + t * a5)))) * (1 - decay(z * z))


@compiled
def _gelu(x: mx.array) -> mx.array:
    size = mx.abs(x)
    return 0.5 * (x + size - size * _tail(size))


@compiled
def _gelu_slope(x: mx.array) -> mx.array:
    size = mx.abs(x)
    below = 0.5 + (x / mx.maximum(size, 1e-30)) * (0.5 - 0.5 * _tail(size))
    slope: mx.array = below + x * (1 - decay(0.5 * (size * size))) * _DENSITY
    return slope


@mx.custom_function
def _smooth_gelu(x: mx.array) -> mx.array:
    return _gelu(x)


@_smooth_gelu.vjp
def _gelu_back(x: mx.array, cotangent: mx.array, result: mx.array) -> mx.array:
    return cotangent * _gelu_slope(x)
