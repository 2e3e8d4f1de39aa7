"""The block that the temporal and the depth transformer are made of, and the temporal transformer."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..config import LMConfig
from ..fast_math import sigmoid
from ..layers import (
    Linear,
    Rotary,
    Sinusoid,
    attend,
    compiled,
    linear,
    make_norm,
    on_cpu,
    split_heads,
    window_mask,
)
from .cache import KVCache, LayerCache, attend_cached, put

_MANY_ROWS = 64
"""From so many rows on, as in training, a gate is computed in pieces that MLX's CPU backend is fast at."""


def embed(table: nn.Embedding, tokens: mx.array) -> mx.array:
    """Rows of `table` for `tokens`, the last one for those beyond it; a negative token gives zero."""
    present = (tokens >= 0)[..., None]
    return mx.where(present, table(mx.clip(tokens, 0, len(table.weight) - 1)), 0)


@compiled
def _gate(x: mx.array) -> mx.array:
    gate, value = mx.split(x, 2, axis=-1)
    return gate * mx.sigmoid(gate) * value


class Attention(nn.Module):
    """Projections of multi-head self-attention."""

    def __init__(self, width: int):
        super().__init__()
        self.in_proj = Linear(width, 3 * width)
        self.out_proj = Linear(width, width)


class GatedMLP(nn.Module):
    """A gated feed-forward layer, SiLU on the first half."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.linear_in = Linear(width, 2 * hidden)
        self.linear_out = Linear(hidden, width)

    def __call__(self, x: mx.array) -> mx.array:
        many = x.size >= _MANY_ROWS * x.shape[-1] and x.dtype == mx.float32 and on_cpu()
        halves = many and isinstance(self.linear_in, Linear)
        return self.linear_out(self._gate_halves(x) if halves else _gate(self.linear_in(x)))

    def _gate_halves(self, x: mx.array) -> mx.array:
        # Copying the halves of a product apart takes longer there than multiplying by the halves of the weights.
        for_gate, for_value = mx.split(self.linear_in["weight"], 2)
        gate = linear(x, for_gate)
        return gate * sigmoid(gate) * linear(x, for_value)


class PlainMLP(nn.Module):
    """A feed-forward layer without a gate, GELU between its two products."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.linear1 = Linear(width, hidden)
        self.linear2 = Linear(hidden, width)

    def __call__(self, x: mx.array) -> mx.array:
        return self.linear2(nn.gelu(self.linear1(x)))


class Block(nn.Module):
    """Pre-norm transformer block, in the pieces around the attention that its two users need.

    Args:
        width, heads, hidden: of activations, of the attention, of the MLP.
        norm, gating: as `config.json` names them.
    """

    def __init__(self, width: int, heads: int, hidden: int, norm: str, gating: str = "silu"):
        super().__init__()
        self._heads = heads
        self.norm1 = make_norm(norm, width)
        self.norm2 = make_norm(norm, width)
        self.self_attn = Attention(width)
        self.gating = PlainMLP(width, hidden) if gating == "none" else GatedMLP(width, hidden)

    def project(self, x: mx.array) -> mx.array:
        """Queries, keys and values [B, 3, H, T, head_dim] of `x` [B, T, D]."""
        return split_heads(self.self_attn.in_proj(self.norm1(x)), self._heads)

    def attend(self, q: mx.array, keys_values: mx.array, mask: mx.array | None) -> mx.array:
        """Attention of `q` [B, H, T, head_dim] over `keys_values` [B, 2, H, n, head_dim], giving [B, T, D]."""
        return attend(q, keys_values[:, 0], keys_values[:, 1], mask)

    def finish(self, x: mx.array, attended: mx.array) -> mx.array:
        """The block's output for its input `x` and the attention's result, both [..., D]."""
        x = x + self.self_attn.out_proj(attended)
        return x + self.gating(self.norm2(x))


class TemporalTransformer(nn.Module):
    """Causal transformer over steps, each seeing itself and the `context - 1` steps before it."""

    def __init__(self, config: LMConfig):
        super().__init__()
        width, heads = config.dim, config.num_heads
        self._context = config.context
        self._rotary = Rotary(width // heads, config.max_period) if config.positional_embedding == "rope" else None
        self._positional = self._rotary or Sinusoid(width, config.max_period)
        self.layers = [
            Block(width, heads, config.hidden_dim, config.norm, config.gating) for _ in range(config.num_layers)
        ]

    def __call__(self, x: mx.array, state: KVCache | None = None) -> mx.array:
        """Hidden states [B, T, D] of inputs `x` [B, T, D], continuing `state` and moving it on."""
        T = x.shape[1]
        start = state.offset if state else 0
        past = state.slot_positions() if state else np.zeros((0,), dtype=np.int64)
        mask = window_mask(start, T, np.concatenate([past, start + np.arange(T)]), self._context)
        positions = self._positional.positions(start, T)
        if self._rotary is None:
            x = x + positions.astype(x.dtype)
        for i, block in enumerate(self.layers):
            qkv = self._turned(block.project(x), positions)
            keys_values = qkv[:, 1:]
            if state:
                keys_values = mx.concatenate([state.read(i, qkv.shape[-1]), keys_values], axis=3)
                state.write(i, qkv[:, 1:])
            x = block.finish(x, block.attend(qkv[:, 0], keys_values, mask))
        if state:
            state.offset += T
        return x

    def step(
        self, x: mx.array, cache: list[LayerCache], where: StepPosition, window: int
    ) -> tuple[mx.array, list[LayerCache]]:
        """One step with fixed shapes, for compilation.

        Args:
            x: inputs, [B, 1, D].
            cache: keys and values of every layer; where rows have places of their own, each row's arrays in turn.
            where: what depends on the step's number: one place for all rows, or one a row.
            window: how many of the cache's slots to read; all slots written so far must be among them.

        Returns:
            Hidden states [B, 1, D] and the moved-on cache.
        """
        new_cache = []
        places = where.places
        if self._rotary is None:
            x = x + mx.stack([place.positions for place in places]).astype(x.dtype)
        for block, kept in zip(self.layers, cache, strict=True):
            qkv = block.project(x)
            parts = [qkv] if len(places) == 1 else mx.split(qkv, len(places))
            size = len(kept) // len(places)
            new_kept: LayerCache = ()
            attended = []
            for row, (place, part) in enumerate(zip(places, parts, strict=True)):
                part = self._turned(part, place.positions)
                own = put(kept[row * size : (row + 1) * size], part[:, 1:], place.slot)
                new_kept += own
                attended.append(attend_cached(part[:, 0], own, window, place.mask))
            new_cache.append(new_kept)
            x = block.finish(x, attended[0] if len(places) == 1 else mx.concatenate(attended))
        return x, new_cache

    def step_position(self, offset: int, window: int) -> StepPosition:
        """What `step` needs to know of step number `offset`."""
        mask = mx.array(np.arange(window) <= offset) if offset < window else mx.ones((window,), dtype=mx.bool_)
        slot = mx.array([offset % self._context], dtype=mx.int32)
        return StepPosition(self._positional.positions(offset, 1), slot, mask)

    def _turned(self, qkv: mx.array, positions: mx.array) -> mx.array:
        return qkv if self._rotary is None else self._rotary(qkv, positions)


class StepPosition(tuple[mx.array, ...]):
    """What a step's position embedding takes, its cache slot and visible slots; of several rows, row after row."""

    def __new__(cls, *arrays: mx.array) -> StepPosition:
        return super().__new__(cls, arrays)

    @property
    def places(self) -> list[StepPosition]:
        """The position of each row, or the one of all."""
        return [StepPosition(*self[i : i + 3]) for i in range(0, len(self), 3)]

    @property
    def positions(self) -> mx.array:
        """What the position embedding takes of the step."""
        return self[0]

    @property
    def slot(self) -> mx.array:
        """Cache slot to write, int32 [1]."""
        return self[1]

    @property
    def mask(self) -> mx.array:
        """Slots that hold something, bool [window]."""
        return self[2]
