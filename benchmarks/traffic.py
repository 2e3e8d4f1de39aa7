"""Bytes that a step reads, and how fast this machine can read: the limit of every step that is large enough."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import moshi_mlx  # noqa: F401  (puts OpenBLAS under MLX)

import mlx.core as mx  # isort: skip
import numpy as np

from moshi_mlx.checkpoint import Quantization, kind_of, pieces
from moshi_mlx.checkpoint.quantization import bytes_of
from moshi_mlx.config import LMConfig, MimiConfig
from moshi_mlx.lm import KVCache
from moshi_mlx.mimi import expected_tensors

Chooser = Callable[[str, tuple[int, ...]], Quantization | None]
"""How a module's weight of some shape is quantized; a `Recipe` is one."""


def lm_bytes_read(config: LMConfig, how: Chooser, float_bytes: int = 2) -> int:
    """Weights that one step of the language model touches.

    All of both transformers and of the output projections, every slice of the depth transformer reading its own; of an
    embedding the one row that is looked up.

    Args:
        config: the model's shape.
        how: which weights are packed.
        float_bytes: of a weight that isn't.
    """
    total = 0
    for name, piece in pieces(config).items():
        module = name.removesuffix(".weight")
        if module.startswith(("extra_heads", "condition_provider")) or _is_shared_input(module, config):
            continue
        shape = (1, *piece.shape[1:]) if kind_of(module) == "embeddings" else piece.shape
        total += _bytes(shape, how(module, piece.shape) if name.endswith(".weight") else None, float_bytes)
    return total


def _is_shared_input(module: str, config: LMConfig) -> bool:
    """Whether this input projection of a slice is another's, computed once for both."""
    parts = module.split(".")
    if parts[0] != "depformer" or parts[3] != "linear_in":
        return False
    slice_ = int(parts[2])
    return config.schedule.index(config.schedule[slice_]) != slice_


def lm_bytes_held(config: LMConfig, how: Chooser, float_bytes: int = 2) -> int:
    """All weights of the language model, as in its file."""
    shapes = {name: piece.shape for name, piece in pieces(config).items()}
    return sum(
        _bytes(shape, how(name.removesuffix(".weight"), shape) if name.endswith(".weight") else None, float_bytes)
        for name, shape in shapes.items()
    )


def _bytes(shape: tuple[int, ...], how: Quantization | None, float_bytes: int) -> int:
    return math.prod(shape) * float_bytes if how is None else bytes_of(shape, how)


def kv_bytes(config: LMConfig, steps: int, dtype: mx.Dtype = mx.bfloat16, bits: int | None = None) -> int:
    """Keys and values of the last `steps` steps, or of the window where it is shorter.

    Args:
        config: the model's shape.
        steps: how many.
        dtype: of the numbers, or of the scales of quantized ones.
        bits: of a quantized cache, 8 or 4.

    Raises:
        InputError: a cache that can't be quantized so.
    """
    one_step = KVCache.empty(1, (1, config.num_heads, 1, config.dim // config.num_heads), dtype, bits)
    return config.num_layers * min(steps, config.context) * one_step.nbytes


def codec_bytes_read(config: MimiConfig, codebooks: int, item_bytes: int = 4) -> int:
    """Weights of encoder and decoder for one frame: every codebook searched once, of its entries one decoded."""
    total = 0
    for name, shape in expected_tensors(config).items():
        if "_codebook." in name:
            index = int(name.split(".")[4]) + ("rvq_rest" in name)
            # Sum and usage are one table of entries once they are loaded.
            if name.endswith("embedding_sum") and index < codebooks:
                total += (shape[0] + 1) * shape[1]
        else:
            total += math.prod(shape)
    return total * item_bytes


def bandwidth(seconds: float = 1.0) -> float:
    """Bytes a second that this machine reads from memory at its best, all CPUs or the GPU at work."""
    read = _read_on_cpu() if mx.default_device() == mx.cpu else _read_on_gpu()
    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        started = time.perf_counter()
        read()
        best = max(best, _READ_BYTES / (time.perf_counter() - started))
    return best


_READ_BYTES = 1 << 28


def _read_on_cpu() -> Callable[[], object]:
    threads = int(os.environ.get("OPENBLAS_NUM_THREADS") or os.cpu_count() or 1)
    parts = np.array_split(np.ones(_READ_BYTES // 4, np.float32), threads)
    pool = ThreadPoolExecutor(threads)
    return lambda: list(pool.map(np.max, parts))


def _read_on_gpu() -> Callable[[], object]:
    x = mx.ones((_READ_BYTES // 4,), mx.float32)
    mx.eval(x)
    return lambda: mx.eval(mx.max(x))
