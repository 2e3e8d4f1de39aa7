"""The codec's causal transformers: layer norm, rotary attention over the last `context` steps, GELU, layer scale.

Keys and values live in a ring that is a whole number of writes long, so that a write never wraps and, where nobody else
holds the old state, happens in place.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import mlx.core as mx
import numpy as np

from ..config import MimiConfig
from ..fast_math import fading
from ..layers import linear, on_cpu, turn
from .activations import gelu

_EPS = 1e-5
_TURN = 2**32
_UNSEEN = -1e4


class Rotary:
    """Interleaved rotary embedding whose phases stay exact however long the stream.

    Frequencies are whole 2^-32ths of a turn and positions integers, so their product modulo a turn has no rounding:
    a phase difference depends on the distance alone, after an hour as in the first second.
    """

    def __init__(self, head_dim: int, max_period: float):
        turns = max_period ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim) / (2 * math.pi)
        self.frequencies = mx.array(np.round(turns * _TURN).astype(np.uint32))

    def phases(self, positions: mx.array) -> mx.array:
        """Unit complex numbers [T, 3, 1, head_dim / 2] for int32 `positions` [T]: for queries, keys and (1) values."""
        turns = (positions.astype(mx.uint32)[:, None] * self.frequencies).astype(mx.float32)
        angles = (turns * (2 * math.pi / _TURN))[:, None] * mx.array([[1.0], [1.0], [0.0]])
        return (mx.cos(angles) + 1j * mx.sin(angles))[:, :, None]


def rotate(qkv: mx.array, phases: mx.array) -> mx.array:
    """Turn pairs of `qkv` [B, T, 3, H, head_dim] by `phases`."""
    return cast(mx.array, turn(qkv.astype(mx.float32), phases)).astype(qkv.dtype)


def ring_length(context: int, steps: int) -> int:
    """Slots in which `steps` queries at once each find `context` keys, as a multiple of `steps`."""
    return math.ceil((context - 1 + steps) / steps) * steps


def visible(position: mx.array, steps: int, slots: int, context: int) -> mx.array:
    """Which ring slots each of `steps` queries from `position` on may see, as bool [steps, slots]."""
    queries = position + mx.arange(steps, dtype=mx.int32)
    age = (queries[:, None] - mx.arange(slots, dtype=mx.int32)) % slots
    # A slot of this write that lies after the query would look `slots - 1` steps old: beyond the context by then.
    return (age < context) & (age <= queries[:, None])


def attend(q: mx.array, k: mx.array, v: mx.array, mask: mx.array) -> mx.array:
    """Attention of scaled `q` [B, H, T, head_dim] over `k`, `v` [B, H, slots, head_dim], giving [B, T, D].

    `mask` [T, slots] is added to the scores.
    """
    B, _, T, _ = q.shape
    if on_cpu():
        scores = q @ k.swapaxes(2, 3) + mask
        weights = fading(mx.stop_gradient(scores.max(axis=3, keepdims=True)) - scores)
        out = (weights @ v) / weights.sum(axis=3, keepdims=True)
    else:
        out = mx.fast.scaled_dot_product_attention(q, k, v, scale=1.0, mask=mask)
    return out.swapaxes(1, 2).reshape(B, T, -1)


# What depends on a stream's position: the ring's slot to write, rotary phases, the mask of what is seen.
Place = tuple[mx.array, mx.array, mx.array]


class Block:
    """One transformer layer."""

    def __init__(self, tensors: Mapping[str, mx.array], prefix: str, num_heads: int):
        self.num_heads = num_heads
        self.norm1 = tensors[f"{prefix}.norm1.weight"], tensors[f"{prefix}.norm1.bias"]
        self.norm2 = tensors[f"{prefix}.norm2.weight"], tensors[f"{prefix}.norm2.bias"]
        scale1 = tensors[f"{prefix}.layer_scale_1.scale"][:, None]
        scale2 = tensors[f"{prefix}.layer_scale_2.scale"][:, None]
        self.in_proj = _scale_queries(tensors[f"{prefix}.self_attn.in_proj_weight"], num_heads)
        self.out_proj = scale1 * tensors[f"{prefix}.self_attn.out_proj.weight"]
        self.linear1 = tensors[f"{prefix}.linear1.weight"]
        self.linear2 = scale2 * tensors[f"{prefix}.linear2.weight"]

    def __call__(self, x: mx.array, rings: list[mx.array], places: list[Place]) -> tuple[mx.array, list[mx.array]]:
        """Continue `x` [B, T, D]: one ring [B, 2H, slots, head_dim] and place for all rows, or one of each a row."""
        B, T, _ = x.shape
        H = self.num_heads
        qkv = linear(mx.fast.layer_norm(x, *self.norm1, _EPS), self.in_proj).reshape(B, T, 3, H, -1)
        parts = [qkv] if len(rings) == 1 else mx.split(qkv, len(rings))
        following, attended = [], []
        for part, ring, (slot, phases, mask) in zip(parts, rings, places, strict=True):
            part = rotate(part, phases).reshape(part.shape[0], T, 3 * H, -1).swapaxes(1, 2)
            ring = mx.slice_update(ring, part[:, H:], slot, axes=[2])
            following.append(ring)
            attended.append(attend(part[:, :H], ring[:, :H], ring[:, H:], mask))
        x = x + linear(attended[0] if len(rings) == 1 else mx.concatenate(attended), self.out_proj)
        hidden = linear(mx.fast.layer_norm(x, *self.norm2, _EPS), self.linear1)
        return x + linear(gelu(hidden), self.linear2), following


def _scale_queries(in_proj: mx.array, num_heads: int) -> mx.array:
    width = in_proj.shape[1]
    queries, others = mx.split(in_proj, [width])
    return mx.concatenate([queries * (width // num_heads) ** -0.5, others])


# A transformer's state, or a list of such, one a row.
State = dict[str, Any] | list[dict[str, Any]]


class Transformer:
    """A stack of blocks with state `{"position": int32 [1], "rings": one per block}`."""

    def __init__(self, tensors: Mapping[str, mx.array], prefix: str, config: MimiConfig):
        self.config = config
        self.blocks = [
            Block(tensors, f"{prefix}.transformer.layers.{i}", config.num_heads)
            for i in range(config.layers_of(prefix))
        ]
        self.rotary = Rotary(config.dimension // config.num_heads, config.max_period)
        self.dtype = self.blocks[0].in_proj.dtype if self.blocks else mx.float32

    def state(self, B: int, steps: int) -> dict[str, Any]:
        """State for calls with `steps` steps each (the last may have fewer)."""
        c = self.config
        shape = (B, 2 * c.num_heads, ring_length(c.context, steps), c.dimension // c.num_heads)
        rings = [mx.zeros(shape, dtype=self.dtype) for _ in self.blocks]
        return {"position": mx.zeros((1,), dtype=mx.int32), "rings": rings}

    def __call__(self, x: mx.array, state: State) -> tuple[mx.array, State]:
        """Continue `state` with `x` [B, T, D]; a list of states has one for each row, at a position of its own."""
        T = x.shape[1]
        states = state if isinstance(state, list) else [state]
        places = [self._place(s["position"], T, s["rings"][0].shape[2], x.dtype) for s in states if s["rings"]]
        following = []
        for i, block in enumerate(self.blocks):
            x, rings = block(x, [s["rings"][i] for s in states], places)
            following.append(rings)
        moved = [
            {"position": s["position"] + T, "rings": [rings[row] for rings in following]}
            for row, s in enumerate(states)
        ]
        return x, moved if isinstance(state, list) else moved[0]

    def _place(self, position: mx.array, T: int, slots: int, dtype: mx.Dtype) -> Place:
        phases = self.rotary.phases(position + mx.arange(T, dtype=mx.int32))
        seen = visible(position, T, slots, self.config.context)
        return position % slots, phases, mx.where(seen, 0, _UNSEEN).astype(dtype)
