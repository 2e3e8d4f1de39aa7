"""Conditions: a named value such as `description="very_good"`, looked up and summed into the input of every step."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import mlx.core as mx
import mlx.nn as nn

from ..config import ConditionerConfig
from ..errors import InputError
from ..layers import Linear

# One value for the whole batch, or one for each row; None stands for "not given".
Conditions = Mapping[str, "str | Sequence[str | None] | None"]


class Conditioner(nn.Module):
    """A lookup table from a condition's possible values to vectors of the model's width."""

    def __init__(self, config: ConditionerConfig, width: int):
        super().__init__()
        self._values = config.possible_values
        self._bins = config.n_bins
        self.embed = nn.Embedding(config.n_bins + 1, config.dim)
        self.output_proj = Linear(config.dim, width)
        self.learnt_padding = mx.zeros((1, 1, width))

    def __call__(self, name: str, values: Sequence[str | None]) -> mx.array:
        """Vectors [B, 1, D] of the given values.

        Raises:
            InputError: a value is not among the possible ones.
        """
        rows = []
        for value in values:
            if value is None:
                rows.append(self.learnt_padding[0])
                continue
            rows.append(self.output_proj(self.embed(mx.array([self._entry(name, value)]))))
        return mx.stack(rows)

    def _entry(self, name: str, value: str) -> int:
        if not self._values:  # published: any text has an entry, by its hash
            return int(hashlib.sha256(value.encode()).hexdigest(), 16) % self._bins
        if value not in self._values:
            raise InputError(f"Condition {name}={value!r} is unknown; possible are {', '.join(self._values)}.")
        return self._values.index(value)


class ConditionProvider(nn.Module):
    """All of a model's conditioners."""

    def __init__(self, configs: Mapping[str, ConditionerConfig], width: int):
        super().__init__()
        self.conditioners = {name: Conditioner(config, width) for name, config in configs.items()}

    def __call__(self, conditions: Conditions, batch_size: int) -> mx.array:
        """The sum [B, 1, D] of all conditions' vectors; one that isn't given counts as None.

        Raises:
            InputError: a condition or a value that the model doesn't have.
        """
        unknown = set(conditions) - set(self.conditioners)
        if unknown:
            known = ", ".join(self.conditioners) or "none"
            raise InputError(f"The model has no condition {', '.join(sorted(unknown))}; it has: {known}.")
        total: mx.array | None = None
        for name, conditioner in self.conditioners.items():
            given = conditions.get(name)
            values = [given] * batch_size if given is None or isinstance(given, str) else list(given)
            if len(values) != batch_size:
                raise InputError(f"Condition {name} has {len(values)} values for a batch of {batch_size}.")
            vectors = conditioner(name, values)
            total = vectors if total is None else total + vectors
        assert total is not None
        return total
