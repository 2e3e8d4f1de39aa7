"""Auxiliary heads beside a model's weights: a run that starts from these goes on with them.

They are no part of a model, nothing else reads them.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from ..checkpoint import read_header, write_half
from ..errors import CheckpointError
from ..files import storage_errors

_FILE = "heads.safetensors"


@dataclass(frozen=True)
class Head:
    """What an auxiliary head has learned.

    Attributes:
        weight: [1 + classes, D]; the first row is of what is in no class.
        labels: what the classes stand for.
    """

    weight: mx.array
    labels: tuple[str, ...]

    def of(self, labels: Collection[str]) -> mx.array | None:
        """The weight for these labels, float32 [1 + labels, D]; None where it knows nothing of one of them."""
        rows = {label: row for row, label in enumerate(self.labels, 1)}
        if not rows.keys() >= set(labels):
            return None
        return self.weight[mx.array([0, *(rows[label] for label in labels)])].astype(mx.float32)


Heads = Mapping[str, Head]
"""By the auxiliary heads' names."""


def write_heads(folder: Path, heads: Heads) -> None:
    """Put heads beside a model, in half precision, in place of those that were there.

    Raises:
        StorageError: disk full, no permission.
    """
    if not heads:
        with storage_errors(str(folder / _FILE)):
            (folder / _FILE).unlink(missing_ok=True)
        return
    labels = {name: json.dumps(head.labels) for name, head in heads.items()}
    write_half(folder / _FILE, {name: head.weight for name, head in heads.items()}, labels)


def read_heads(folder: Path) -> dict[str, Head]:
    """The heads beside a model; none where it has none.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = folder / _FILE
    if not path.exists():
        return {}
    try:
        labels = read_header(path).metadata
    except CheckpointError as error:
        raise _damaged(f"{path} is no whole safetensors file") from error
    weights = mx.load(str(path))
    assert isinstance(weights, dict)
    try:
        heads = {name: Head(weight, tuple(json.loads(labels[name]))) for name, weight in weights.items()}
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(f"{path} does not say what its heads tell") from error
    for name, head in heads.items():
        if head.weight.ndim != 2 or len(head.weight) != 1 + len(head.labels):
            raise _damaged(f"{path}: {name} is {head.weight.shape} for {len(head.labels)} labels")
    return heads


def _damaged(what: str) -> CheckpointError:
    return CheckpointError(f"{what}. Delete it: the heads learn anew then.")


def mean_heads(models: Sequence[Heads], shares: Sequence[float]) -> dict[str, Head]:
    """The mean of several models' heads, those of the first one's labels; none where one lacks them."""
    result: dict[str, Head] = {}
    for name, first in models[0].items():
        weights = [heads[name].of(first.labels) if name in heads else None for heads in models]
        known = [weight for weight in weights if weight is not None]
        if len(known) == len(models) and len({weight.shape for weight in known}) == 1:
            mean = sum((share * weight for share, weight in zip(shares, known, strict=True)), mx.array(0.0))
            result[name] = Head(mean, first.labels)
    return result
