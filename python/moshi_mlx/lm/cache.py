"""The temporal transformer's KV cache: a ring of the last `context` steps, in floating point or quantized."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from ..errors import InputError
from ..layers import attend, merge_heads

# Keys and values of one layer, [B, 2, H, context, head_dim]: one array, or packed weights, scales and biases.
LayerCache = tuple[mx.array, ...]

KV_BITS = (4, 8)
_GROUP_SIZES = (64, 32)


class KVCache:
    """Keys and values of every layer, and the number of steps taken.

    Step `p` lies in slot `p % context`, so nothing moves while the window slides.
    """

    def __init__(self, layers: list[LayerCache], context: int, offset: int = 0):
        self.layers = layers
        self.context = context
        self.offset = offset

    @classmethod
    def empty(cls, layers: int, shape: tuple[int, int, int, int], dtype: mx.Dtype, bits: int | None = None) -> KVCache:
        """A cache without content.

        Args:
            layers: number of layers.
            shape: batch size, heads, context, head dimension.
            dtype: of keys and values, or of the scales of quantized ones.
            bits: None, 8 or 4 bits a number.

        Raises:
            InputError: no such number of bits, or heads too narrow to be quantized.
        """
        B, H, context, D = shape
        if bits is None:
            return cls([(mx.zeros((B, 2, H, context, D), dtype),) for _ in range(layers)], context)
        if bits not in KV_BITS:
            raise InputError(f"A KV cache of {bits} bits was asked for; expected 8, 4 or none.")
        group = next((size for size in _GROUP_SIZES if D % size == 0), None)
        if group is None:
            raise InputError(f"Heads {D} wide can't be quantized in groups of 32; leave the KV cache unquantized.")
        empty = mx.zeros((B, 2, H, context, D), dtype)
        return cls([tuple(mx.quantize(empty, group, bits)) for _ in range(layers)], context)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole ring, which don't change."""
        return sum(array.nbytes for layer in self.layers for array in layer)

    def slot_positions(self) -> np.ndarray:
        """The step whose keys each slot holds, -1 where it is empty."""
        slots = np.arange(self.context)
        last = self.offset - 1
        positions = last - (last - slots) % self.context
        return np.where(positions >= 0, positions, -1)

    def read(self, layer: int, width: int) -> mx.array:
        """A layer's ring in floating point, [B, 2, H, context, head_dim]; `width` is the head dimension."""
        kept = self.layers[layer]
        if len(kept) == 1:
            return kept[0]
        weights, scales, biases = kept
        group, bits = _packing(kept, width)
        return mx.dequantize(weights, scales, biases, group, bits)

    def write(self, layer: int, keys_values: mx.array) -> None:
        """Put the steps from `offset` on, [B, 2, H, T, head_dim], into their slots."""
        T = keys_values.shape[3]
        kept = self.layers[layer]
        step = max(0, T - self.context)
        while step < T:
            slot = (self.offset + step) % self.context
            count = min(T - step, self.context - slot)
            kept = put(kept, keys_values[:, :, :, step : step + count], mx.array([slot], dtype=mx.int32))
            step += count
        self.layers[layer] = kept

    def copy(self) -> KVCache:
        """An independent cache with the same content."""
        return KVCache([tuple(mx.array(array) for array in layer) for layer in self.layers], self.context, self.offset)


def put(kept: LayerCache, keys_values: mx.array, slot: mx.array) -> LayerCache:
    """`kept` with `keys_values` [B, 2, H, T, head_dim] from `slot` (int32 [1]) on; in place if nobody else holds it."""
    new = (keys_values,) if len(kept) == 1 else mx.quantize(keys_values, *_packing(kept, keys_values.shape[-1]))
    return tuple(mx.slice_update(old, array, slot, (3,)) for old, array in zip(kept, new, strict=True))


def attend_cached(q: mx.array, kept: LayerCache, window: int, mask: mx.array) -> mx.array:
    """Attention of `q` [B, H, 1, head_dim] over the first `window` slots, of which `mask` [window] are filled."""
    layer = [array[:, :, :, :window] for array in kept]
    if len(layer) == 1:
        return attend(q, layer[0][:, 0], layer[0][:, 1], mask)
    # Imported where needed: with it come transformers and a second and a half.
    from mlx_lm.models.base import quantized_scaled_dot_product_attention

    D = q.shape[-1]
    group, bits = _packing(kept, D)
    keys, values = ((w[:, i], s[:, i], b[:, i]) for w, s, b in [layer] for i in (0, 1))
    out = quantized_scaled_dot_product_attention(q, keys, values, D**-0.5, mask, group_size=group, bits=bits)
    return merge_heads(out)


def _packing(kept: LayerCache, width: int) -> tuple[int, int]:
    """Group size and bits of a quantized layer."""
    weights, scales = kept[0], kept[1]
    return width // scales.shape[-1], weights.shape[-1] * 32 // width
