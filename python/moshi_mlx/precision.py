"""In which number formats a model runs: one decision, by device and size.

On Metal a model runs as it is stored: quantized weights packed, activations bfloat16. MLX's CPU backend is 3-8 times
slower in bfloat16 than in float32, and 2-4 times slower on packed weights than on float32 ones, so there everything is
unpacked to float32 at loading, as long as the result takes no more than a quarter of the machine's memory.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import mlx.core as mx

from .layers import on_cpu

if TYPE_CHECKING:
    from .checkpoint.quantization import Quantization


@dataclass(frozen=True)
class Precision:
    """How weights are held.

    Attributes:
        dtype: of unquantized weights and activations.
        unpack: whether quantized weights are turned into `dtype` at loading.
    """

    dtype: mx.Dtype
    unpack: bool


def choose_precision(tensors: Mapping[str, mx.array], quantization: Mapping[str, Quantization]) -> Precision:
    """The precision for a checkpoint's tensors on the default device.

    Args:
        tensors: by name; quantized ones as `weight`, `scales` and, in affine modes, `biases`.
        quantization: quantized modules' names.
    """
    stored = {name: tensor.dtype for name, tensor in tensors.items()}
    # A quantized model computes in its scales' type: another one would have them converted at every product.
    scales = [f"{module}.scales" for module, how in quantization.items() if how.mode == "affine"]
    dtype = stored.get(scales[0] if scales else "out_norm.weight", mx.bfloat16)
    if not on_cpu():
        return Precision(dtype, unpack=False)
    if 4 * _weights(tensors, quantization) <= _memory() // 4:
        return Precision(mx.float32, unpack=True)
    return Precision(mx.float32 if quantization else dtype, unpack=False)


def _weights(tensors: Mapping[str, mx.array], quantization: Mapping[str, Quantization]) -> int:
    total = 0
    for name, tensor in tensors.items():
        module, _, leaf = name.rpartition(".")
        how = quantization.get(module)
        if how is None:
            total += tensor.size
        elif leaf == "weight":
            total += tensor.size * 32 // how.bits
    return total


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
