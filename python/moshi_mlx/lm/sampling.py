"""Choosing a token: temperature and top-k by the Gumbel-max trick.

Top-k asks for a partition of the logits only; on a CPU it is one, on Metal MLX sorts them for now.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from ..errors import InputError


@dataclass(frozen=True)
class Sampling:
    """How one stream's tokens are chosen: `temp` 0 is greedy, `top_k` 0 keeps the whole vocabulary."""

    temp: float
    top_k: int

    def __post_init__(self) -> None:
        if not self.temp >= 0:
            raise InputError(f"A sampling temperature is {self.temp}; expected 0 (greedy) or more.")
        if self.top_k < 0:
            raise InputError(f"top-k is {self.top_k}; expected 0 (the whole vocabulary) or more.")

    @classmethod
    def greedy(cls) -> Sampling:
        """Always the likeliest token."""
        return cls(0.0, 0)

    @property
    def is_greedy(self) -> bool:
        """Whether no noise is needed."""
        return self.temp == 0


def sample(logits: mx.array, sampling: Sampling, noise: mx.array | None = None) -> mx.array:
    """Choose one token a row.

    The likeliest of `logits / temp + Gumbel noise` is a sample of the softmax at that temperature; leaving out all but
    the `top_k` largest logits needs their threshold only, which a partition finds.

    Args:
        logits: [B, V].
        sampling: temperature and top-k.
        noise: Gumbel noise [B, >= V]; needed unless greedy.

    Returns:
        uint32 [B].
    """
    if sampling.is_greedy:
        return mx.argmax(logits, axis=-1)
    if noise is None:
        raise InputError("Sampling at a temperature needs noise.")
    V = logits.shape[-1]
    scores = logits.astype(mx.float32) * (1 / sampling.temp) + noise[:, :V]
    if 0 < sampling.top_k < V:
        kth = V - sampling.top_k
        threshold = mx.partition(logits, kth, axis=-1)[:, kth : kth + 1]
        scores = mx.where(logits >= threshold, scores, -mx.inf)
    return mx.argmax(scores, axis=-1)


def gumbel_noise(seed: int, step: int, shape: tuple[int, ...]) -> mx.array:
    """Gumbel noise float32 of `shape` for one step: the same for the same seed and step, whatever came before."""
    generator = np.random.Generator(np.random.Philox(key=seed & (2**64 - 1), counter=[0, 0, 0, step]))
    exponential = generator.standard_exponential(shape, dtype=np.float32)
    # The smallest float32 above zero keeps the logarithm finite.
    return mx.array(-np.log(np.maximum(exponential, np.finfo(np.float32).tiny)))
