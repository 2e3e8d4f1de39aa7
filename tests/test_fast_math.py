"""Exponentials written in vectorized operations equal MLX's own, and so do their gradients."""

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from moshi_mlx.fast_math import cross_entropy, decay, fading, sigmoid, softmax
from moshi_mlx.lm.transformer import GatedMLP
from moshi_mlx.mimi.activations import gelu


def largest(difference: mx.array) -> float:
    return float(np.abs(np.array(difference)).max())


def test_decay_is_one_minus_a_falling_exponential() -> None:
    x = mx.concatenate([mx.array([0.0, 1e-6]), mx.linspace(0, 100, 10_001)])
    assert largest(decay(x) - (1 - mx.exp(-x))) < 5e-7


@pytest.mark.parametrize("size", [1.0, 30.0, 1000.0])
def test_sigmoid_and_its_gradient(size: float) -> None:
    x = mx.concatenate([mx.array([0.0]), size * mx.random.normal((1000,), key=mx.random.key(1))])
    assert largest(sigmoid(x) - mx.sigmoid(x)) < 5e-7
    slope, expected = (mx.grad(lambda x, f=f: (f(x) * mx.cos(x)).sum())(x) for f in (sigmoid, mx.sigmoid))
    assert largest(slope - expected) < 2e-6


def test_fading_is_a_falling_exponential_and_so_is_its_gradient() -> None:
    x = mx.concatenate([mx.array([0.0, 1e-6]), mx.linspace(0, 40, 1001)])
    assert largest(fading(x) - mx.exp(-x)) < 5e-7
    slope = mx.grad(lambda x: (fading(x) * mx.cos(x)).sum())(x)
    assert largest(slope + mx.exp(-x) * (mx.cos(x) + mx.sin(x))) < 2e-6


def test_gelus_gradient() -> None:
    x = mx.concatenate([mx.array([0.0]), mx.linspace(-9, 9, 1001)])
    slope, expected = (mx.grad(lambda x, f=f: (f(x) * mx.cos(x)).sum())(x) for f in (gelu, nn.gelu))
    assert largest(slope - expected) < 5e-6


def test_cross_entropy_and_its_gradient() -> None:
    logits = 8 * mx.random.normal((3, 7, 501), key=mx.random.key(2))
    targets = mx.random.randint(0, 501, (3, 7), key=mx.random.key(3))
    weights = mx.random.uniform(shape=(3, 7), key=mx.random.key(4))
    assert largest(cross_entropy(logits, targets) - nn.losses.cross_entropy(logits, targets)) < 3e-5

    def gradient(f: Callable[[mx.array, mx.array], mx.array]) -> mx.array:
        return mx.grad(lambda x: (weights * f(x, targets)).sum())(logits)

    assert largest(gradient(cross_entropy) - gradient(nn.losses.cross_entropy)) < 2e-5


def test_softmax() -> None:
    logits = 8 * mx.random.normal((3, 7, 501), key=mx.random.key(6))
    assert largest(softmax(logits) - mx.softmax(logits, axis=-1)) < 1e-5


def test_many_rows_are_gated_like_few() -> None:
    mlp = GatedMLP(32, 48)
    x = mx.random.normal((8, 40, 32), key=mx.random.key(5))
    rows = mx.concatenate([mlp(x[:, i : i + 1]) for i in range(40)], axis=1)
    assert largest(mlp(x) - rows) < 1e-5
