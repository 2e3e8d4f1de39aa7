"""Exponentials for MLX's CPU backend, with gradients.

That backend computes `exp` one number at a time, some 10-30 ns each, a hundred times what an addition takes: training
would spend more on gates and losses than on matrix products. Additions, products and quotients are vectorized, so here
exponentials are written in those, fused where a C++ compiler is at hand.
"""

from __future__ import annotations

from typing import cast

import mlx.core as mx
import mlx.nn as nn

from .layers import compiled, on_cpu

_HALVINGS = 3


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


@compiled
def _sigmoid(x: mx.array) -> mx.array:
    size = mx.abs(x)
    # From 1/2 up for the size, turned over for negative numbers: x / |x| is the sign, 0 at 0.
    return 0.5 + (x / mx.maximum(size, 1e-30)) * (1 / (2 - decay(size)) - 0.5)


@mx.custom_function
def _smooth(x: mx.array) -> mx.array:
    return _sigmoid(x)


@_smooth.vjp
def _smooth_back(x: mx.array, cotangent: mx.array, result: mx.array) -> mx.array:
    return cotangent * (result - result * result)


def sigmoid(x: mx.array) -> mx.array:
    """1 / (1 + exp(-x)) of float32 numbers, within 4e-7."""
    return cast(mx.array, _smooth(x))


@compiled
def _falling(depth: mx.array) -> mx.array:
    return 1 - decay(depth)


@mx.custom_function
def _fading(depth: mx.array) -> mx.array:
    return _falling(depth)


@_fading.vjp
def _fading_back(depth: mx.array, cotangent: mx.array, result: mx.array) -> mx.array:
    return -cotangent * result


def fading(depth: mx.array) -> mx.array:
    """exp(-x) for x of at least 0, within 4e-7."""
    return cast(mx.array, _fading(depth))


def _shares(logits: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """exp(logits - highest), its sum over the classes, and the highest."""
    # Broadcasting inside a fused kernel is slow: only arrays of one shape go there.
    highest = logits.max(axis=-1, keepdims=True)
    powers = _falling(highest - logits)
    return powers, powers.sum(axis=-1, keepdims=True), highest


def softmax(logits: mx.array) -> mx.array:
    """Softmax of float32 `logits` [..., V] over the last axis, within 1e-5; for where no gradients are needed."""
    if not on_cpu():
        return mx.softmax(logits, axis=-1)
    powers, total, _ = _shares(logits)
    return powers / total


@mx.custom_function
def _cross_entropy(logits: mx.array, targets: mx.array) -> mx.array:
    _, total, highest = _shares(logits)
    chosen = mx.take_along_axis(logits, targets[..., None], axis=-1)
    return (mx.log(total) + highest - chosen)[..., 0]


@_cross_entropy.vjp
def _cross_entropy_vjp(
    primals: tuple[mx.array, mx.array], cotangent: mx.array, _: mx.array
) -> tuple[mx.array, mx.array]:
    logits, targets = primals
    powers, total, _ = _shares(logits)
    back = powers * (cotangent[..., None] / total)
    place = mx.arange(logits.shape[-1], dtype=mx.int32)
    hit = (place == targets[..., None]).astype(mx.float32)
    return back - hit * cotangent[..., None], mx.zeros_like(targets)


def cross_entropy(logits: mx.array, targets: mx.array) -> mx.array:
    """Cross-entropy of `logits` [..., V] and class numbers `targets` int32 [...], float32 [...]."""
    if not on_cpu():
        return nn.losses.cross_entropy(logits, targets)
    return cast(mx.array, _cross_entropy(logits, targets))
