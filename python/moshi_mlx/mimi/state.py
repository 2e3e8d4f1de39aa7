"""Where a stream stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Tree = dict[str, Any]
"""Nested dicts and lists of arrays whose shapes never change."""


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
