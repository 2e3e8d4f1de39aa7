"""What callers may hand in: NumPy arrays or MLX arrays of the right type."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from .errors import InputError

ArrayLike = mx.array | npt.NDArray[Any]

_INTEGERS = (mx.int8, mx.int16, mx.int32, mx.int64, mx.uint8, mx.uint16, mx.uint32, mx.uint64)


def check_array(value: object, name: str) -> None:
    """Refuse what is no array.

    Raises:
        InputError: it is something else.
    """
    if not isinstance(value, (mx.array, np.ndarray)):
        raise InputError(f"{name} is a {type(value).__name__}; expected a NumPy array or an mlx.core.array.")


def check_integers(value: ArrayLike, name: str) -> None:
    """Refuse what is no array of integers.

    Raises:
        InputError: it is something else.
    """
    check_array(value, name)
    integer = value.dtype in _INTEGERS if isinstance(value, mx.array) else np.issubdtype(value.dtype, np.integer)
    if not integer:
        raise InputError(f"{name}: found {value.dtype}; expected integers.")


def check_tokens(
    tokens: ArrayLike, shape: Sequence[int | str], tops: Sequence[int], name: str, least: int = -1
) -> mx.array:
    """`tokens` [B, K] or [B, K, T] as an int32 array.

    The ids of an MLX array are not looked at, which would wait for what computes them.

    Args:
        shape: the axes' sizes; a letter stands for any from 1 on.
        tops: the highest id of each row of the second axis, [K].
        least: the lowest id.

    Raises:
        InputError: another shape, no integers, or (in a NumPy array) an id out of range.
    """
    check_integers(tokens, name)
    found = tuple(tokens.shape)
    wanted = ", ".join(map(str, shape))
    if len(found) != len(shape) or not all(
        size == n or (isinstance(n, str) and size > 0) for size, n in zip(found, shape, strict=True)
    ):
        raise InputError(f"{name}: found the shape {list(found)}; expected [{wanted}].")
    if isinstance(tokens, mx.array):
        return tokens.astype(mx.int32)
    highest = np.reshape(tops, (-1, *[1] * (tokens.ndim - 2)))
    if (tokens > highest).any() or (tokens < least).any():
        raise InputError(f"{name}: found ids from {tokens.min()} to {tokens.max()}; expected {least} to {max(tops)}.")
    return mx.array(np.ascontiguousarray(tokens, dtype=np.int32))
