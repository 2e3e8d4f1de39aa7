"""Writing a safetensors file whole or not at all, one tensor at a time."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import mlx.core as mx
import numpy as np

from ..errors import StorageError
from ..files import ResultFile, storage_errors
from .check import TensorSpec
from .header import DTYPE_BYTES

DTYPE_NAMES = {
    mx.bfloat16: "BF16", mx.float16: "F16", mx.float32: "F32", mx.uint32: "U32", mx.uint8: "U8", mx.int32: "I32",
}  # fmt: skip
"""The format's names of MLX's types."""

_BLOCK = 1 << 24


def write_safetensors(
    path: str | Path,
    specs: Mapping[str, TensorSpec],
    tensors: Iterable[tuple[str, mx.array]],
    metadata: Mapping[str, str] | None = None,
) -> int:
    """Write tensors as they come, holding no more than one; return the file's size in bytes.

    Args:
        path: takes its name only when complete.
        specs: shape and stored type (a name of the format, such as `BF16`) of every tensor, in the order in which
            `tensors` gives them.
        tensors: evaluated one after another.
        metadata: text to store beside them.

    Raises:
        StorageError: disk full, no permission, no such folder.
        ValueError: `tensors` aren't what `specs` says.
    """
    header, size = _header(specs, metadata or {"format": "mlx"})
    _need_space(Path(path), size)
    expected = iter(specs.items())
    with ResultFile(path) as file:
        file.write(header)
        for name, array in tensors:
            due, spec = next(expected, ("nothing", TensorSpec(())))
            if name != due or tuple(array.shape) != tuple(spec.shape) or DTYPE_NAMES[array.dtype] != spec.dtype:
                raise ValueError(f"{name} is {array.shape} {array.dtype}; {due} {spec} was due")
            data = np.asarray(array.view(mx.uint8)).reshape(-1)
            for start in range(0, data.size, _BLOCK):
                file.write(data[start : start + _BLOCK].tobytes())
        if (left := next(expected, None)) is not None:
            raise ValueError(f"{left[0]} was not given")
    return size


def write_half(path: str | Path, tensors: Mapping[str, mx.array], metadata: Mapping[str, str] | None = None) -> int:
    """Write tensors, those of floats in float16, `metadata` beside them; returns the file's size in bytes.

    Raises:
        StorageError: as `write_safetensors`.
    """
    halves = {
        name: array.astype(mx.float16) if mx.issubdtype(array.dtype, mx.floating) else array
        for name, array in tensors.items()
    }
    specs = {name: TensorSpec(tuple(array.shape), DTYPE_NAMES[array.dtype]) for name, array in halves.items()}
    return write_safetensors(path, specs, iter(halves.items()), metadata)


def _header(specs: Mapping[str, TensorSpec], metadata: Mapping[str, str]) -> tuple[bytes, int]:
    """The file's first bytes, and its size."""
    table: dict[str, object] = {"__metadata__": dict(metadata)}
    position = 0
    for name, spec in specs.items():
        end = position + math.prod(spec.shape) * DTYPE_BYTES[spec.dtype]
        table[name] = {"dtype": spec.dtype, "shape": spec.shape, "data_offsets": (position, end)}
        position = end
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that every 4-byte tensor begins at a multiple of 4
    return len(text).to_bytes(8, "little") + text, 8 + len(text) + position


def _need_space(path: Path, size: int) -> None:
    with storage_errors(str(path)):
        free = shutil.disk_usage(path.absolute().parent).free
    if free < size:
        raise StorageError(
            f"{path} needs {size / 1e6:,.1f} MB and the disk has {free / 1e6:,.1f} MB left. "
            "Free some space or choose another place."
        )
