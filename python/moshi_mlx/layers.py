"""What the codec's and the language model's transformers share.

MLX's CPU backend hands every matrix product to BLAS, whose product with the weights on the left of one or two columns
reads them at the speed of memory, while the same product with the weights on the right takes up to twice as long.
`linear` picks the side; on Metal the two are the same kernel.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from typing import TypeVar, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from .config import NORM_EPS

_MAX_COLUMNS = 2

F = TypeVar("F", bound=Callable[..., object])


def arrays_of(tree: object) -> dict[str, mx.array]:
    """All arrays of nested lists, tuples, dictionaries and modules, by their paths."""
    return dict(cast("list[tuple[str, mx.array]]", tree_flatten(tree)))


def on_cpu() -> bool:
    """Whether MLX runs on its CPU backend here."""
    return bool(mx.default_device() == mx.cpu)


@functools.cache
def can_compile() -> bool:
    """Whether MLX can build fused kernels here."""
    # On CPU MLX builds fused kernels with the system's C++ compiler, at run time.
    return not on_cpu() or shutil.which("g++") is not None or shutil.which("clang++") is not None


def compiled(function: F) -> F:
    """`mx.compile` where it can run: always on Metal, on CPU where a C++ compiler is installed."""
    return cast(F, mx.compile(function)) if can_compile() else function


def linear(x: mx.array, weight: mx.array) -> mx.array:
    """Product of activations [..., I] and weights [O, I], giving [..., O]."""
    rows = x.size // x.shape[-1]
    if rows == 1 and on_cpu():
        return (weight @ x.reshape(-1, 1)).reshape(*x.shape[:-1], -1)
    if rows <= _MAX_COLUMNS and on_cpu():
        return (weight @ x.reshape(rows, -1).T).T.reshape(*x.shape[:-1], -1)
    return x @ weight.T


class Linear(nn.Linear):
    """A projection without bias, fast for one or two rows on CPU."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        return linear(x, self["weight"])


class RMSNorm(nn.Module):
    """Root-mean-square norm computed in float32."""

    def __init__(self, width: int, eps: float = 1e-8):
        super().__init__()
        self.weight = mx.ones((width,))
        self.eps = eps

    def __call__(self, x: mx.array) -> mx.array:
        return mx.fast.rms_norm(x, self.weight, self.eps)


def make_norm(kind: str, width: int) -> nn.Module:
    """The norm that `config.json` calls `kind`: root-mean-square, or layer norm with a bias."""
    eps = NORM_EPS[kind]
    return nn.LayerNorm(width, eps) if kind.startswith("layer_norm") else RMSNorm(width, eps)


@mx.custom_function
def turn(x: mx.array, phases: mx.array) -> mx.array:
    """Turn neighbouring pairs of `x` by the complex `phases`."""
    return mx.view(mx.view(x, mx.complex64) * phases, mx.float32)


@turn.vjp
def _turn_back(primals: tuple[mx.array, mx.array], cotangent: mx.array, _: mx.array) -> tuple[mx.array, mx.array]:
    # MLX has no gradient for `view`; that of a rotation is the opposite rotation.
    phases = primals[1]
    return mx.view(mx.view(cotangent, mx.complex64) * mx.conjugate(phases), mx.float32), mx.zeros_like(phases)


class Rotary:
    """Interleaved rotary position embedding of stacked queries, keys and values.

    Queries and keys are turned by their position, values by nothing, in a single operation: on CPU one complex product,
    on Metal one rotary kernel in which the values' position is zero.
    """

    def __init__(self, head_dim: int, max_period: float):
        self.head_dim = head_dim
        self.max_period = max_period
        # Angles are taken modulo a turn in double precision, so that an hour's positions are as exact as the first.
        self._frequencies = max_period ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)

    def positions(self, start: int, length: int) -> mx.array:
        """What `__call__` takes for `length` positions from `start`."""
        if not on_cpu():
            return mx.array([start, start, 0], dtype=mx.int32)
        angles = (start + np.arange(length, dtype=np.float64))[:, None] * self._frequencies
        phases = np.exp(1j * np.stack([angles, angles, np.zeros_like(angles)]))
        return mx.array(phases.astype(np.complex64))

    def __call__(self, qkv: mx.array, positions: mx.array) -> mx.array:
        """Turn `qkv` [B, 3, H, T, head_dim]; `positions` comes from the method of that name."""
        if positions.dtype == mx.complex64:
            turned_pairs = cast(mx.array, turn(qkv.astype(mx.float32), positions[:, None]))
            return turned_pairs.astype(qkv.dtype)
        B, _, H, T, D = qkv.shape
        # At one position the values can go along, turned by zero; further positions would turn them.
        turned = 3 if T == 1 else 2
        rope = mx.fast.rope(
            qkv[:, :turned].reshape(B * turned, H, T, D),
            D,
            traditional=True,
            base=self.max_period,
            scale=1.0,
            offset=mx.tile(positions[:turned], B) if B > 1 else positions[:turned],
        ).reshape(B, turned, H, T, D)
        return rope if T == 1 else mx.concatenate([rope, qkv[:, 2:]], axis=1)


class Sinusoid:
    """Sinusoidal position embedding, added to a transformer's input: cosines, then sines."""

    def __init__(self, width: int, max_period: float):
        half = width // 2
        self._frequencies = max_period ** (-np.arange(half, dtype=np.float64) / max(half - 1, 1))

    def positions(self, start: int, length: int) -> mx.array:
        """What to add at `length` positions from `start`, float32 [length, width]."""
        angles = (start + np.arange(length, dtype=np.float64))[:, None] * self._frequencies
        return mx.array(np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32))


def window_mask(query_start: int, length: int, key_positions: np.ndarray, context: int) -> mx.array:
    """Which keys [n] each of `length` queries may see: itself and `context - 1` before it, as bool [length, n].

    A negative key position marks an empty slot.
    """
    queries = query_start + np.arange(length)[:, None]
    keys = key_positions[None, :]
    return mx.array((keys >= 0) & (keys <= queries) & (keys > queries - context))


def attend(q: mx.array, k: mx.array, v: mx.array, mask: mx.array | None) -> mx.array:
    """Scaled dot-product attention of `q` [B, H, T, D] over `k`, `v` [B, H, n, D], giving [B, T, H * D]."""
    out = mx.fast.scaled_dot_product_attention(q, k, v, scale=q.shape[-1] ** -0.5, mask=mask)
    return merge_heads(out)


def split_heads(qkv: mx.array, heads: int) -> mx.array:
    """Stacked queries, keys and values [B, T, 3 * D] as [B, 3, H, T, head_dim]."""
    B, T, width = qkv.shape
    if T == 1:
        return qkv.reshape(B, 3, heads, 1, -1)
    return qkv.reshape(B, T, 3, heads, width // (3 * heads)).transpose(0, 2, 3, 1, 4)


def merge_heads(x: mx.array) -> mx.array:
    """What every head attended to, [B, H, T, head_dim], as [B, T, D]."""
    B, H, T, D = x.shape
    return (x if T == 1 else x.swapaxes(1, 2)).reshape(B, T, H * D)
