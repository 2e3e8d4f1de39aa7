"""What callers may hand in: NumPy arrays or MLX arrays of the right shape."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from ..arrays import ArrayLike, check_array, check_integers
from ..errors import InputError

_FLOATS = (mx.float32, mx.float16, mx.bfloat16)


def check_pcm(pcm: ArrayLike, dtype: mx.Dtype, batch_size: int | None = None) -> mx.array:
    """`pcm` as an array [B, 1, T] of `dtype`.

    Raises:
        InputError: another shape, no floating-point numbers, or another batch size than `batch_size`.
    """
    check_array(pcm, "pcm")
    floating = pcm.dtype in _FLOATS if isinstance(pcm, mx.array) else np.issubdtype(pcm.dtype, np.floating)
    if not floating:
        raise InputError(f"pcm is {pcm.dtype}; expected floating point in [-1, 1] (divide 16-bit samples by 32768).")
    if pcm.ndim != 3 or pcm.shape[1] != 1:
        raise InputError(f"pcm has shape {list(pcm.shape)}; expected [B, 1, samples]: mono, a channel axis of 1.")
    _check_batch(pcm.shape[0], "pcm", batch_size)
    if isinstance(pcm, mx.array):
        return pcm.astype(dtype)
    return mx.array(pcm.astype(np.float32)).astype(dtype)


def check_codes(codes: ArrayLike, num_codebooks: int, bins: int, batch_size: int | None = None) -> mx.array:
    """`codes` as an array int32 [B, K, T].

    The values of an MLX array are not looked at, which would take a host synchronization.

    Raises:
        InputError: another shape, no integers, another batch size than `batch_size`, codes outside the codebook.
    """
    check_integers(codes, "codes")
    if codes.ndim != 3 or not 1 <= codes.shape[1] <= num_codebooks or codes.shape[2] < 1:
        raise InputError(
            f"codes have shape {list(codes.shape)}; expected [B, K, frames] with K of 1 to {num_codebooks} "
            "and at least one frame. More codebooks: Mimi.load(..., num_codebooks=...)."
        )
    _check_batch(codes.shape[0], "codes", batch_size)
    if isinstance(codes, mx.array):
        return codes.astype(mx.int32)
    low, high = int(codes.min()), int(codes.max())
    if low < 0 or high >= bins:
        raise InputError(f"codes go from {low} to {high}; expected 0 to {bins - 1}.")
    return mx.array(codes.astype(np.int32))


def _check_batch(found: int, name: str, expected: int | None) -> None:
    if found < 1 or (expected is not None and found != expected):
        raise InputError(f"{name} has a batch of {found}; expected {expected or 'at least 1'}.")
