"""Whether a file's tensors are those that a model is made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx

from ..errors import CheckpointError
from .header import TensorInfo

FLOAT = "float"
"""Stands for any of the types that weights are stored in: BF16, F16, F32."""

_FLOATS = ("BF16", "F16", "F32")
_SHOWN = 3
_AT_ONCE = 1 << 22
"""Numbers that are looked at together."""


class TensorSpec(NamedTuple):
    """What a model expects of one tensor."""

    shape: tuple[int, ...]
    dtype: str = FLOAT
    """A name of the safetensors format (`U32`), or `FLOAT`."""

    def accepts(self, dtype: str) -> bool:
        return dtype in _FLOATS if self.dtype == FLOAT else dtype == self.dtype

    def __str__(self) -> str:
        return f"{list(self.shape)} {'/'.join(_FLOATS) if self.dtype == FLOAT else self.dtype}"


def check_tensors(
    expected: Mapping[str, TensorSpec],
    found: Mapping[str, TensorInfo],
    path: str | Path,
    *,
    optional: Iterable[str] = (),
    what: str = "the model that config.json describes",
) -> None:
    """Compare a file's tensors with the model's.

    `optional` names tensors that the model doesn't need and that may be there in any shape.

    Raises:
        CheckpointError: tensors are missing, extra, misshapen or mistyped; the message names the first.
    """
    ignored = set(optional)
    missing = [name for name in expected if name not in found and name not in ignored]
    extra = [name for name in found if name not in expected and name not in ignored]
    wrong = [
        f"{name} is {list(found[name].shape)} {found[name].dtype}, expected {spec}"
        for name, spec in expected.items()
        if name in found and name not in ignored
        and (tuple(found[name].shape) != tuple(spec.shape) or not spec.accepts(found[name].dtype))
    ]  # fmt: skip
    problems = [
        f"{len(names)} tensor{'s' if len(names) > 1 else ''} {kind}: {_first(names)}"
        for kind, names in (
            ("missing", missing),
            ("too many", extra),
            ("misshapen or of the wrong type", wrong),
        )
        if names
    ]
    if problems:
        raise CheckpointError(
            f"{path} doesn't hold {what}. {'; '.join(problems)}. Expected {len(expected)} tensors. "
            "Check that config.json and weights belong together; if they do, download the file again."
        )


def check_finite(weights: Mapping[str, mx.array], what: str) -> None:
    """Refuse weights that hold NaN or infinity: what is computed with them is noise, or nothing.

    Raises:
        CheckpointError: some do; the message names the first.
    """
    floats = {name: x for name, x in weights.items() if mx.issubdtype(x.dtype, mx.floating)}
    wrong = [name for name, x in floats.items() if not _finite(x)]
    if wrong:
        raise CheckpointError(
            f"{what}: {len(wrong)} of {len(weights)} tensors hold NaN or infinity: {_first(wrong)}. "
            "The file is damaged, or was made from a model that diverged: download or quantize it again."
        )


def _finite(x: mx.array) -> bool:
    # Part by part: beside a large model there may be no room for a mask of one of its tensors.
    flat = x.reshape(-1)
    parts = (flat[a : a + _AT_ONCE] for a in range(0, flat.size, _AT_ONCE))
    return all(bool(mx.isfinite(part).all().item()) for part in parts)


def _first(names: list[str]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
