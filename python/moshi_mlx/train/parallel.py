"""Training on several processes, of one machine or many: `mlx.launch -n 2 --backend ring -- COMMAND`.

Each learns from batches of its own; what they learn is averaged, so that all move alike. The first one shows progress
and writes files.
"""

from __future__ import annotations

from typing import TypeVar, cast

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_map

Tree = TypeVar("Tree")


class Processes:
    """The processes of a run; a single one where nothing has started several.

    Attributes:
        rank: this process's number, 0 for the first.
        count: how many there are.
    """

    def __init__(self) -> None:
        self._group = mx.distributed.init()
        self.rank = self._group.rank()
        self.count = self._group.size()

    def mean(self, tree: Tree) -> Tree:
        """The mean over all processes of a tree of arrays, such as gradients."""
        if self.count == 1:
            return tree
        arrays = [array for _, array in cast(list[tuple[str, mx.array]], tree_flatten(tree))]
        # Exchanged as one array: each exchange costs a wait.
        flat = mx.concatenate([array.reshape(-1) for array in arrays])
        flat = mx.distributed.all_sum(flat, group=self._group) / self.count
        edges = np.cumsum([array.size for array in arrays])[:-1].tolist()
        parts = iter(mx.split(flat, edges))
        mean: Tree = tree_map(lambda array: next(parts).reshape(array.shape), tree)
        return mean

    def first(self, x: mx.array) -> mx.array:
        """The first process's `x`, in all of them."""
        if self.count == 1:
            return x
        return mx.distributed.all_sum(x if self.rank == 0 else mx.zeros_like(x), group=self._group)
