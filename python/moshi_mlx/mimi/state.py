"""Where a stream stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map

Tree = dict[str, Any]
"""Nested dicts and lists of arrays whose shapes never change."""


def joined(streams: list[Tree]) -> Tree:
    """Encoder or decoder states of several streams [1, ...] as one of a batch, each row at its own position.

    The rings are not copied; only what the convolutions remember is.
    """
    return {
        name: [stream[name] for stream in streams]
        if name == "transformer"
        else tree_map(lambda *rows: mx.concatenate(list(rows)), *(stream[name] for stream in streams))
        for name in streams[0]
    }


def parted(batch: Tree) -> list[Tree]:
    """The streams that `joined` put together."""
    rows = len(batch["transformer"])
    parts: list[Tree] = [{} for _ in range(rows)]
    for name, part in batch.items():
        for row in range(rows):
            parts[row][name] = part[row] if name == "transformer" else tree_map(lambda x, r=row: x[r : r + 1], part)
    return parts


@dataclass
class MimiState:
    """All that one stream carries from frame to frame; its size is constant.

    Attributes:
        batch_size: streams side by side.
        encoder, decoder: trees of arrays, replaced (never changed) by every step.
    """

    batch_size: int
    encoder: Tree
    decoder: Tree

    def copy(self) -> MimiState:
        """A stream that goes on from here on its own; arrays are shared until one of the two moves on."""
        return MimiState(self.batch_size, self.encoder, self.decoder)
