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

from moshi_mlx.checkpoint import Quantization, pieces
from moshi_mlx.checkpoint.quantization import bytes_of
from moshi_mlx.config import LMConfig
from moshi_mlx.recipe_search import codec_bytes_read, kv_bytes, shape_read

__all__ = ["Chooser", "bandwidth", "codec_bytes_read", "kv_bytes", "lm_bytes_held", "lm_bytes_read"]

Chooser = Callable[[str, tuple[int, ...]], Quantization | None]
"""How a module's weight of some shape is quantized; a `Recipe` is one."""


def lm_bytes_read(config: LMConfig, how: Chooser, float_bytes: int = 2) -> int:
    """Weights that one step of the language model touches (`moshi_mlx.recipe_search.shape_read`).

    Args:
        config: the model's shape.
        how: which weights are packed.
        float_bytes: of a weight that isn't.
    """
    total = 0
    for name, piece in pieces(config).items():
        module = name.removesuffix(".weight")
        chosen = how(module, piece.shape) if name.endswith(".weight") else None
        total += _bytes(shape_read(config, module, piece.shape), chosen, float_bytes)
    return total


def lm_bytes_held(config: LMConfig, how: Chooser, float_bytes: int = 2) -> int:
    """All weights of the language model, as in its file."""
    shapes = {name: piece.shape for name, piece in pieces(config).items()}
    return sum(
        _bytes(shape, how(name.removesuffix(".weight"), shape) if name.endswith(".weight") else None, float_bytes)
        for name, shape in shapes.items()
    )


def _bytes(shape: tuple[int, ...], how: Quantization | None, float_bytes: int) -> int:
    return math.prod(shape) * float_bytes if how is None else bytes_of(shape, how)


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
