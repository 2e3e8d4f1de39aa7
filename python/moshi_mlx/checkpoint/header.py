"""What a safetensors file says it holds, read and checked without touching its weights."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import CheckpointError

DTYPE_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4,
    "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip
"""Bytes of one element, by the format's names of types."""

_MAX_HEADER_BYTES = 100_000_000
_FOREIGN = (
    (b"version https://git-lfs", "a git-lfs pointer, not the file itself; fetch it with `git lfs pull`"),
    (b"PK\x03\x04", "a zip archive (a PyTorch .pt or NumPy .npz file?); convert it to safetensors"),
    (b"\x80\x02", "a Python pickle; convert it to safetensors"),
    (b"GGUF", "a GGUF file; use a safetensors checkpoint"),
    (b"<!DOCTYPE", "a web page, so the download went wrong; download it again"),
    (b"<html", "a web page, so the download went wrong; download it again"),
)


class TensorInfo(NamedTuple):
    """One tensor as a header describes it."""

    shape: tuple[int, ...]
    dtype: str
    """`BF16`, `F32`, `U32`, …: the format's own names."""
    start: int
    """First byte in the file."""
    stop: int

    @property
    def nbytes(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Header:
    """A safetensors file's table of contents."""

    path: Path
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(info.nbytes for info in self.tensors.values())


def read_header(path: str | Path) -> Header:
    """Read a safetensors file's header and check it against the file's size.

    Source: https://huggingface.co/docs/safetensors (8 bytes of length, JSON, data).

    Raises:
        CheckpointError: no such file, not a safetensors file, or one that was cut off.
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; expected a .safetensors file. Name the file in it.")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(64)
            _refuse_foreign(path, size, start)
            length = struct.unpack("<Q", start[:8])[0]
            if length > _MAX_HEADER_BYTES or length < 2 or start[8:9] != b"{":
                raise CheckpointError(f"{path} is not a safetensors file (no header found). Is it the right file?")
            if 8 + length > size:
                raise _truncated(path, size, 8 + length)
            file.seek(8)
            raw = file.read(length)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}. Expected a readable .safetensors file.") from error
    try:
        table = json.loads(raw)
        metadata = table.pop("__metadata__", {})
        tensors = {name: _tensor(path, name, entry, 8 + length) for name, entry in table.items()}
    except (ValueError, AttributeError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise CheckpointError(f"{path} has an unreadable header ({error}). Download the file again.") from error
    _check_data(path, size, tensors, 8 + length)
    return Header(path, tensors, metadata)


def _refuse_foreign(path: Path, size: int, start: bytes) -> None:
    if size == 0:
        raise CheckpointError(f"{path} is empty. Download the file again.")
    for magic, what in _FOREIGN:
        if start.lower().startswith(magic.lower()):
            raise CheckpointError(f"{path} is {what}. Expected a safetensors file.")
    if size < 10:
        raise CheckpointError(f"{path} has only {size} bytes; expected a safetensors file. Download it again.")


def _truncated(path: Path, size: int, expected: int) -> CheckpointError:
    return CheckpointError(
        f"{path} is cut off: it has {size:,} bytes, its header promises {expected:,}. Download it again."
    )


def _tensor(path: Path, name: str, entry: Mapping[str, Any], origin: int) -> TensorInfo:
    shape, dtype = tuple(int(n) for n in entry["shape"]), str(entry["dtype"])
    start, stop = (int(offset) for offset in entry["data_offsets"])
    if dtype not in DTYPE_BYTES:
        raise CheckpointError(f"{path}: tensor {name} has the unknown type {dtype}; expected BF16, F32 or U32.")
    if min(shape, default=0) < 0 or start < 0 or stop - start != math.prod(shape) * DTYPE_BYTES[dtype]:
        raise CheckpointError(
            f"{path}: tensor {name} takes {stop - start} bytes, which doesn't fit {list(shape)} of {dtype}. "
            "The file is damaged; download it again."
        )
    return TensorInfo(shape, dtype, origin + start, origin + stop)


def _check_data(path: Path, size: int, tensors: Mapping[str, TensorInfo], origin: int) -> None:
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors; expected a model's weights. Is it the right file?")
    position, before = origin, "the header"
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
        if info.start != position:
            raise CheckpointError(
                f"{path}: tensor {name} begins at byte {info.start:,}; expected {position:,}, where {before} "
                "ends. The file is damaged; download it again."
            )
        position, before = info.stop, name
    if size < position:
        raise _truncated(path, size, position)
    if size > position:
        raise CheckpointError(
            f"{path} has {size:,} bytes; its header describes {position:,}. The file is damaged; download it again."
        )
