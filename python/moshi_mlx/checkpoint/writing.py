"""Writing a safetensors file whole or not at all, one tensor at a time."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import mlx.core as mx
import numpy as np

from ..errors import StorageError
from .check import TensorSpec
from .header import DTYPE_BYTES

_DTYPES = {mx.bfloat16: "BF16", mx.float16: "F16", mx.float32: "F32", mx.uint32: "U32", mx.uint8: "U8"}


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn what the operating system says about `path` into a StorageError."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(f"{path}: the disk is full. Free some space or choose another place.") from error
        raise StorageError(f"{path} can't be written: {error.strerror or error}. Choose another place.") from error


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write that appears under its name only when everything was written.

    Raises:
        StorageError: disk full, no permission, no such folder.
    """
    with storage_errors(path):
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def write_safetensors(
    path: str | Path,
    specs: Mapping[str, TensorSpec],
    tensors: Iterable[tuple[str, mx.array]],
    metadata: Mapping[str, str] | None = None,
) -> int:
    """Write tensors as they come, in any order, without holding more than one; return the file's size.

    `specs` gives the name, shape and stored type (a name of the format, such as `BF16`) of every tensor.

    Raises:
        StorageError: disk full, no permission, no such folder; the file is not left half written.
        ValueError: a tensor isn't what `specs` says, or is missing.
    """
    path = Path(path)
    table: dict[str, object] = {"__metadata__": dict(metadata or {"format": "mlx"})}
    offsets, position = {}, 0
    for name, spec in specs.items():
        size = int(np.prod(spec.shape, dtype=np.int64)) * DTYPE_BYTES[spec.dtype]
        offsets[name] = position
        table[name] = {"dtype": spec.dtype, "shape": spec.shape, "data_offsets": (position, position + size)}
        position += size
    header = json.dumps(table, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    origin = 8 + len(header)
    _need_space(path, origin + position)
    missing = set(specs)
    with replacing(path) as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for name, array in tensors:
            if tuple(array.shape) != tuple(specs[name].shape) or _DTYPES[array.dtype] != specs[name].dtype:
                raise ValueError(f"{name} is {array.shape} {array.dtype}; expected {specs[name]}")
            file.seek(origin + offsets[name])
            file.write(np.ascontiguousarray(array.view(mx.uint8)).data)
            missing.discard(name)
        if missing:
            raise ValueError(f"not given: {', '.join(sorted(missing))}")
        file.truncate(origin + position)
    return origin + position


def _need_space(path: Path, size: int) -> None:
    with storage_errors(path):
        free = shutil.disk_usage(path.parent).free
    if free < size:
        raise StorageError(
            f"{path} needs {size / 1e9:.2f} GB and the disk has {free / 1e9:.2f} GB left. "
            "Free some space or choose another place."
        )
